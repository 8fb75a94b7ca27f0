"""Training: recipes, data, losses and the trainer; `foveate.training.run.Run` runs a recipe."""
