"""Generators of `docs/generate.py`: figures, the reference, and tables of results."""
