"""Training: recipes, data, losses and the trainer; see `foveate.training.run.Run` for the way through."""
