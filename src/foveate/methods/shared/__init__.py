"""Maths that two methods or more use."""
