"""Training-free methods on clips: one file a method, imported by the registry."""
