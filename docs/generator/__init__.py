"""What `docs/generate.py` writes: figures, the reference, and the blocks of numbers."""
