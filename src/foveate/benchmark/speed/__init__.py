"""Speed benchmark of plans: time per part, memory, KV cache and FLOPs, with two controls.

A method can be no faster than keeping k tokens at random on the same kernels, and no better than showing the model a
smaller image unless it reads more from its tokens. Both stand next to every plan at the same number of tokens. All
plans of a model run in turns within one process, each turn in another order, so that whatever else the machine does
falls on all of them alike.
"""

from foveate.benchmark.speed.formatting import NOTE, plot, table, unsteady
from foveate.benchmark.speed.run import run
from foveate.benchmark.speed.settings import SpeedSettings
from foveate.benchmark.speed.shapes import SHAPES, TEXTS, Shape
from foveate.core.full_model import FULL_MODEL

__all__ = ["FULL_MODEL", "NOTE", "SHAPES", "TEXTS", "Shape", "SpeedSettings", "plot", "run", "table", "unsteady"]
