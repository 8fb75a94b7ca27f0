"""Core types of the package: tokens, selections, plans, methods, errors."""
