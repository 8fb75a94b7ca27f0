"""Methods that compress the KV cache of next-scale image models."""
