"""Average pooling to any number of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.core.pre_llm import PreLLMMethod
from foveate.core.tokens import Selection, VisualTokens, merge_tokens
from foveate.methods.shared.cells import cells


@dataclass(frozen=True)
class Pool(PreLLMMethod):
    """Averages neighbouring tokens, in as many cells of equal size as the budget has tokens.

    A control, not a paper: x'_c = mean of the x_i in cell c. Cells are about as wide as high and do not overlap. Where
    rows and columns divide evenly they are the rectangles of average pooling; for any other number the border between
    two neighbours may fall within a column, so that the budget is met exactly and sizes differ by one at most.
    (Adaptive pooling as torch does it only reaches rows x columns and counts some tokens twice.) A merged token takes
    the place of the token nearest to the middle of its cell. Tiled images divide the budget over their crops in
    proportion to their tokens.
    """

    name: ClassVar[str] = "pool"
    mechanism: ClassVar = ("transformation",)
    title: ClassVar[str] = "Average pooling (control)"

    def select(self, tokens: VisualTokens, count: int) -> Selection:
        """See `PreLLMMethod.select`."""
        return merge_tokens(tokens.features, *cells(tokens.crops[0], count))
