"""Average pooling before the two-layer connector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.connectors.connector import whole_number
from foveate.models.connectors.mlp import MLP, MLPOptions


@dataclass(frozen=True)
class AverageOptions(MLPOptions):
    """Options of `Average`.

    Args:
        scale: Patches per token in each direction; rows and columns that it does not divide are rounded up.
        size: (rows, columns) of the tokens of every image, in place of `scale`.
    """

    scale: int = 2
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_number("scale", self.scale)
        if self.size is None:
            return
        if not isinstance(self.size, tuple) or len(self.size) != 2:
            raise FoveateError(f"size must be [rows, columns] of the tokens, not {self.size!r}.")
        for side in self.size:
            whole_number("each side of size", side)


class Average(MLP[AverageOptions]):
    """Averages neighbouring features in a grid of any size, then applies the two-layer connector.

    A control, not a paper. Bins are those of adaptive average pooling: token (i, j) of an n x m grid is the mean of the
    rows floor(i R / n) to ceil((i + 1) R / n) of R, and of the columns likewise. Where n and m divide the grid, these
    are equal rectangles that do not overlap.
    """

    name: ClassVar[str] = "average"
    title: ClassVar[str] = "Average pooling (control)"
    options_class: ClassVar = AverageOptions

    def reduced(self, grid: Grid, budget: int | None) -> Grid:
        """See `Connector.reduced`.

        Raises:
            FoveateError: The image has fewer rows or columns of patches than tokens are asked for.
        """
        if self.options.size is None:
            return Grid(-(-grid.rows // self.options.scale), -(-grid.columns // self.options.scale))
        size = Grid(*self.options.size)
        if size.rows > grid.rows or size.columns > grid.columns:
            raise FoveateError(
                f"the connector average cannot make {size.rows} x {size.columns} tokens of {grid.rows} x "
                f"{grid.columns} patches; choose a smaller size or a larger image."
            )
        return size

    def connect(self, features: Tensor, grid: Grid, output: Grid, text: Tensor | None) -> Tensor:
        """See `Connector.connect`."""
        raster = features.unflatten(1, grid).permute(0, 3, 1, 2)
        return self.project(F.adaptive_avg_pool2d(raster, output).flatten(2).transpose(1, 2))
