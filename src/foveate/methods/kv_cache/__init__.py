"""Methods that keep fewer keys and values of an image in the cache."""
