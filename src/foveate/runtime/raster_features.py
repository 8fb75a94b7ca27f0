"""Features of images mapped to a smaller raster, and where their tokens are placed in the original one."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import local
from typing import Any

import torch
from torch import Tensor, nn

from foveate.core.connector import RasterMethod
from foveate.core.image import kept_positions
from foveate.core.plan import Budget
from foveate.core.pre_llm import divide
from foveate.core.tokens import Grid, PlacedRaster, Selection
from foveate.families import ImageLayout
from foveate.runtime.patches import Patches


@dataclass(frozen=True)
class RasterReduction:
    """How the raster of an image, or of every frame of a clip, becomes a smaller one.

    Args:
        method: Maps the features.
        grid: Rows and columns of the features.
        reduced: Rows and columns of the smaller raster.
        rows: (k,) the tokens that stay, of all smaller rasters one after another; all but the excess over the budget.
        places: (k,) where each is placed among the tokens of the full model.
    """

    method: RasterMethod
    grid: Grid
    reduced: Grid
    rows: Tensor
    places: Tensor

    @classmethod
    def of(cls, method: RasterMethod, layout: ImageLayout, budget: Budget | None) -> RasterReduction:
        """The reduction of an image with this layout. The budget of a clip is divided over its frames."""
        grid, frames = layout.crops[0].grid, len(layout.crops)
        if budget is None:
            reduced = method.reduced_grid(grid, None)
            shares = [reduced.size] * frames
        else:
            shares = divide(budget.of(layout.count), [grid.size] * frames)
            reduced = method.reduced_grid(grid, max(shares))
        rows, places = [], []
        for frame, share in enumerate(shares):
            stay, at = kept_positions(grid, reduced, share)
            rows.append(stay + frame * reduced.size)
            places.append(at + frame * grid.size)
        return cls(method, grid, reduced, torch.cat(rows), torch.cat(places))

    def filter(self, features: Tensor) -> Tensor:
        """Map features (..., frames * N, D) to (..., frames * n, D); the same where no raster becomes smaller."""
        if self.reduced == self.grid:
            return features
        rasters = features.unflatten(-2, (-1, self.grid.size))
        return self.method.reduce(rasters, self.grid, self.reduced).flatten(-3, -2)

    def place(self, tokens: Tensor, count: int) -> tuple[Tensor, Selection]:
        """Place filtered tokens (frames * n, D) among zeros (count, D), and select those that stay."""
        rows, places = self.rows.to(tokens.device), self.places.to(tokens.device)
        if self.reduced == self.grid:
            return tokens, Selection(places)
        placed = tokens.new_zeros(count, tokens.shape[-1]).index_copy(0, places, tokens[rows])
        return placed, Selection(places, raster=PlacedRaster(self.reduced, rows % self.reduced.size))


class ProjectorInput:
    """Hook on a projector that maps the features before it reads them.

    Args:
        projector: Maps every feature by itself.
    """

    def __init__(self, projector: nn.Module) -> None:
        self.projector = projector
        self._local = local()

    def attach(self, patches: Patches) -> None:
        """Install the hook, until `patches` are undone."""
        patches.before(self.projector, self._mapped)

    @contextmanager
    def mapped_by(self, function: Callable[[Tensor], Tensor]) -> Generator[None]:
        """Map this thread's features while the context is open."""
        self._local.function = function
        try:
            yield
        finally:
            self._local.function = None

    def _mapped(self, projector: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        function = getattr(self._local, "function", None)
        return None if function is None else (function(args[0]), *args[1:])
