"""Methods that make the image smaller before the encoder: one file a method, imported by the registry."""
