"""What connects foveate to engines and harnesses of others."""
