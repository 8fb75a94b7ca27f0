"""`python -m foveate`: the same as the console script."""

import sys

from foveate.cli import main

sys.exit(main())
