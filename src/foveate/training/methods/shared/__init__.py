"""What the trainers of several methods use."""
