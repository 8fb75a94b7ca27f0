"""Pixel unshuffle before the two-layer connector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from foveate.core.tokens import Grid
from foveate.models.connectors.connector import whole_number
from foveate.models.connectors.mlp import MLP, MLPOptions


@dataclass(frozen=True)
class PixelUnshuffleOptions(MLPOptions):
    """Options of `PixelUnshuffle`.

    Args:
        scale: Patches per token in each direction.
    """

    scale: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_number("scale", self.scale)


class PixelUnshuffle(MLP[PixelUnshuffleOptions]):
    """Concatenates the features of every scale x scale square, then applies the two-layer connector.

    A control, not one paper: InternVL, Idefics3 and others reduce tokens in this way. A square's features are
    concatenated row by row, `(B, N, D) -> (B, N / scale^2, scale^2 D)`.
    """

    name: ClassVar[str] = "pixel_unshuffle"
    title: ClassVar[str] = "Pixel unshuffle (control)"
    options_class: ClassVar = PixelUnshuffleOptions

    @property
    def multiple(self) -> int:
        """See `Connector.multiple`."""
        return self.options.scale

    def input_width(self, vision_hidden_size: int) -> int:
        """See `MLP.input_width`."""
        return self.options.scale**2 * vision_hidden_size

    def reduced(self, grid: Grid, budget: int | None) -> Grid:
        """See `Connector.reduced`."""
        return Grid(grid.rows // self.options.scale, grid.columns // self.options.scale)

    def connect(self, features: Tensor, grid: Grid, output: Grid, text: Tensor | None) -> Tensor:
        """See `Connector.connect`."""
        return self.project(squares(features, grid, self.options.scale).flatten(2))


def squares(features: Tensor, grid: Grid, side: int) -> Tensor:
    """Features `(B, N, D)` of a grid as squares `(B, N / side^2, side^2, D)`, both row-major."""
    rows, columns = grid.rows // side, grid.columns // side
    windows = features.reshape(len(features), rows, side, columns, side, -1)
    return windows.transpose(2, 3).reshape(len(features), rows * columns, side * side, -1)
