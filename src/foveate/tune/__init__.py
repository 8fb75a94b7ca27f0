"""Search for the best plan for a model and a set of questions, over methods, budgets and layers.

Half of the questions are searched on; what wins there is confirmed on the other half, which the search never saw,
next to random tokens and smaller images. Otherwise the luckiest plan would be praised for its luck.
"""

from foveate.tune.formatting import confirmed, front, plot, verdict
from foveate.tune.goal import Goal, factor, share
from foveate.tune.search import run
from foveate.tune.settings import BUDGETS, TuneSettings, methods_in

__all__ = [
    "BUDGETS",
    "Goal",
    "TuneSettings",
    "confirmed",
    "factor",
    "front",
    "methods_in",
    "plot",
    "run",
    "share",
    "verdict",
]
