"""The adapter for lmms-eval."""
