"""Base class of methods that resize the image before the encoder."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.core.method import Method, Positions, Site
from foveate.core.tokens import Grid


@dataclass(frozen=True)
class ImageMethod(Method):
    """A method that resizes an image before the encoder, so that it gives fewer tokens."""

    site: ClassVar[Site] = Site.IMAGE
    shortens_encoder: ClassVar[bool] = True
    positions: ClassVar[Positions] = "original"

    @abstractmethod
    def reduced_grid(self, grid: Grid, count: int) -> Grid:
        """Rows and columns of tokens that the image is resized to, none more than those of `grid`.

        Args:
            grid: Those of the original image.
            count: Tokens that shall stay, 1 to rows * columns; the reduced grid has as many or more.
        """


def grid_of_least_excess(grid: Grid, count: int) -> Grid:
    """The raster of `count` or more tokens, no side longer than that of `grid`, that fits best.

    It has the proportions of `grid`, as nearly as whole rows and columns allow, and little excess.
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


def kept_positions(grid: Grid, small: Grid, count: int) -> tuple[Tensor, Tensor]:
    """The tokens of a reduced image that are kept, and their positions in the original one.

    Returns:
        `(rows, positions)`, both (count,) ascending int64: the kept tokens of the small raster, and the index of the
            centre of each in the large one. The positions differ, for no side of `small` is longer than that of `grid`.
    """
    stay = ((torch.arange(count, dtype=torch.float64) + 0.5) * small.size / count).long()
    row = (((stay // small.columns).double() + 0.5) * grid.rows / small.rows).long()
    column = (((stay % small.columns).double() + 0.5) * grid.columns / small.columns).long()
    return stay, row * grid.columns + column
