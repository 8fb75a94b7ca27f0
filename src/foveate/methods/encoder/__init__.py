"""Methods that merge tokens inside a vision transformer: one file a method, imported by the registry."""
