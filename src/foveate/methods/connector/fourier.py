"""Fourier-VLM: a low-pass filter of the visual features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from foveate.core.connector import RasterMethod
from foveate.core.image import grid_of_least_excess
from foveate.core.tokens import Grid
from foveate.methods.shared.low_pass import check_ratio, grid_of_ratio, low_pass


@dataclass(frozen=True)
class Fourier(RasterMethod):
    """Keeps the lowest frequencies of the visual features and transforms them back at a smaller size.

        C = DCT(x)                                    x (R, C, D), orthonormal DCT-II of every channel, in float32
        x' = inverse DCT(C[:r, :c]) * sqrt(r c / (R C))

    It acts before the projector of LLaVA, and after the 2 x 2 merger of Qwen2-VL and Qwen2.5-VL, on every frame of a
    clip by itself. In the authors' code the last factor is missing: a map of 24 x 24 features that becomes 12 x 12 has
    twice its mean, which weights that were trained so expect. Without training the language model has never read
    features of that size, so that here a constant map stays as it is. A model that was trained so has the connector
    `fourier` here; this method then runs it at the requested length, unscaled as it was trained, and needs a budget.

    Without a budget each axis keeps a share of its frequencies, rounded down as in the authors' code: 2/3 for Qwen in
    the paper. A budget is met exactly: by the smallest raster with about the proportions of the image and at least so
    many tokens, of which the excess is left out evenly; nothing is, where rows and columns can be so divided (256, 144,
    64 and 36 of 576 tokens in the paper). Positions are those of an image of the smaller raster, also with several axes
    (M-RoPE), as the authors rewrite `grid_thw`.

    Args:
        ratio: Share of the frequencies that each axis keeps where no budget is given.
    """

    ratio: float = 2 / 3

    name: ClassVar[str] = "fourier"
    mechanism: ClassVar = ("transformation",)
    title: ClassVar[str] = "Fourier-VLM: Compressing Vision Tokens in the Frequency Domain for Large VLMs"
    paper: ClassVar[str] = "arXiv 2508.06038"
    budget: ClassVar = "optional"
    without_budget: ClassVar[tuple[str, ...]] = ("ratio",)
    connector: ClassVar[str | None] = "fourier"

    def __post_init__(self) -> None:
        check_ratio(self.ratio)

    def reduced_grid(self, grid: Grid, count: int | None) -> Grid:
        """See `RasterMethod.reduced_grid`."""
        return grid_of_ratio(grid, self.ratio) if count is None else grid_of_least_excess(grid, count)

    def reduce(self, features: Tensor, grid: Grid, reduced: Grid) -> Tensor:
        """See `RasterMethod.reduce`."""
        return low_pass(features, grid, reduced, rescale=True)
