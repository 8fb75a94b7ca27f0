"""The best plan for a model and somebody's questions: a search over methods, budgets and layers, with its evidence.

Half of the questions are searched on; what wins there is confirmed on the other half, which the search never saw,
beside random tokens and smaller images. Otherwise the luckiest plan would be praised for its luck.
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
