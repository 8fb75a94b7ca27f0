"""Evenly spaced tokens (control)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.core.pre_llm import PreLLMMethod
from foveate.core.tokens import Selection, VisualTokens
from foveate.methods.shared.cells import cells


@dataclass(frozen=True)
class Uniform(PreLLMMethod):
    """Keeps tokens evenly spaced over the rows and columns of the image.

    A control, not a paper. The raster is divided into as many cells of equal size as the budget has tokens, about as
    wide as high, and the token nearest to the middle of each stays (of equally near ones the first): a regular lattice
    where rows and columns divide evenly, and close to one for every other number. Its cells are those that `pool`
    averages. Tiled images divide the budget over their crops in proportion to their tokens.
    """

    name: ClassVar[str] = "uniform"
    mechanism: ClassVar = ("control",)
    title: ClassVar[str] = "Evenly spaced tokens (control)"

    def select(self, tokens: VisualTokens, count: int) -> Selection:
        """See `PreLLMMethod.select`."""
        return Selection(cells(tokens.crops[0], count)[0])
