"""Methods whose model asks for more of an image: one file a method, imported by the registry."""
