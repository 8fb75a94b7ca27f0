"""Methods between layers of the language model: one file a method, imported by the registry."""
