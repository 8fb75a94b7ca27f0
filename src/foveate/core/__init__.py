"""What every other part of the package uses: tokens, selections, plans, methods, errors."""
