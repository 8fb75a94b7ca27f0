"""lmms-eval integration."""
