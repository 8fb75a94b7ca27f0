"""Visualization of answers and of kept tokens."""
