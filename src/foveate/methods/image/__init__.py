"""Methods that make the image smaller before the encoder."""
