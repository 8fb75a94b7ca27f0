"""Trained architectures, one folder each."""
