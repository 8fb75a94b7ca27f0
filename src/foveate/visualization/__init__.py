"""Pictures of answers and of what a plan keeps of an image."""
