"""Modules shared by the trainers of several methods."""
