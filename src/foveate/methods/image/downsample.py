"""`downsample`: the image itself made smaller, the control that every way of choosing tokens has to beat."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from foveate.core.tokens import Grid


@dataclass(frozen=True)
class Downsample:
    """Shrinks the image before the encoder, so that just as many tokens result as are asked for.

    The image is resized (bicubic, antialiased) to the smallest raster of tokens that has the image's proportions, as
    nearly as whole rows and columns allow, and at least `count` tokens; what it has more than that is left out evenly.
    Each token stands at the position of the place it shows. No paper: the image at a lower resolution is what a method
    must be better than to be worth its trouble.
    """

    name: ClassVar[str] = "downsample"
    mechanism: ClassVar = ("transformation",)
    modality: ClassVar = ("image",)
    title: ClassVar[str] = "The image at a lower resolution (control)"
    paper: ClassVar[str] = ""
    site: ClassVar[str] = "image"
    trained: ClassVar[bool] = False
    static_count: ClassVar[bool] = True
    budget: ClassVar[Literal["count", "optional", "none"]] = "count"
    positions: ClassVar[Literal["original", "contiguous"]] = "original"

    @property
    def arguments(self) -> dict[str, object]:
        """There are no hyper-parameters."""
        return {}


def reduced_grid(grid: Grid, count: int) -> Grid:
    """The smallest raster with the proportions of `grid`, no side longer than its, and `count` or more tokens.

    Args:
        grid: Rows and columns of the untouched image.
        count: 1 to rows * columns.
    """
    candidates = []
    for rows in range(1, grid.rows + 1):
        columns = -(-count // rows)
        if columns <= grid.columns:
            # How far the proportions are off, and how much is wasted; both count alike.
            stretch = abs(math.log(rows / columns) - math.log(grid.rows / grid.columns))
            candidates.append((stretch + math.log(rows * columns / count), rows, columns))
    _, rows, columns = min(candidates)
    return Grid(rows, columns)


def places(grid: Grid, small: Grid, count: int) -> tuple[Tensor, Tensor]:
    """Where the tokens of a reduced image stand among those of the untouched one.

    Returns:
        `(rows, places)`, both (count,) ascending int64: which tokens of the small raster stay, and the place of the
        centre of each in the large one. The places differ, for no side of `small` is longer than that of `grid`.
    """
    stay = ((torch.arange(count, dtype=torch.float64) + 0.5) * small.size / count).long()
    row = (((stay // small.columns).double() + 0.5) * grid.rows / small.rows).long()
    column = (((stay % small.columns).double() + 0.5) * grid.columns / small.columns).long()
    return stay, row * grid.columns + column
