"""Maths shared by two methods or more."""
