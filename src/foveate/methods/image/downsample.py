"""Downsampling of the image before the encoder (control)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.core.image import ImageMethod, grid_of_least_excess
from foveate.core.tokens import Grid


@dataclass(frozen=True)
class Downsample(ImageMethod):
    """Shrinks the image before the encoder, so that it gives the number of tokens asked for.

    The image is resized (bicubic, antialiased) to the smallest raster of tokens that has the image's proportions, as
    nearly as whole rows and columns allow, and at least `count` tokens; excess tokens are left out evenly. Each token
    has the position of the area it shows. The frames of a clip all become equally small. No paper: the image at a lower
    resolution is the control that every method has to beat.
    """

    name: ClassVar[str] = "downsample"
    mechanism: ClassVar = ("transformation",)
    modality: ClassVar = ("image", "video")
    title: ClassVar[str] = "The image at a lower resolution (control)"

    def reduced_grid(self, grid: Grid, count: int) -> Grid:
        """The smallest raster with the proportions of `grid`, no side longer than its, and `count` or more tokens."""
        return grid_of_least_excess(grid, count)
