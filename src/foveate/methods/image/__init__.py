"""Methods that make the image smaller before the encoder: one file a method, registered by lying here."""
