"""`python -m foveate.training RECIPE.yaml`: the same as `foveate train RECIPE.yaml`."""

import sys

from foveate.cli import main

sys.exit(main(["train", *sys.argv[1:]]))
