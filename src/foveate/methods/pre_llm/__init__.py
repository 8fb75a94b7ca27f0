"""Methods before the language model: one file a method, imported by the registry."""
