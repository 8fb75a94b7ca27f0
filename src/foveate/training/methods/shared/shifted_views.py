"""Shifted and mirrored views of an image, and the average of the features that a tower gives for them (PH-Reg).

Artifacts of a vision transformer are bound to places of its grid more than to the image. Views that are shifted by
whole patches show every part of the image at several places, and averaging what each says of the part lowers them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from foveate.core.tokens import Grid

#: Shifts that are drawn for each that is chosen.
POOL = 10


def farthest_points(points: np.ndarray, count: int, first: int) -> np.ndarray:
    """Indices of points that are far from each other: each next one is the farthest from those before it.

    Args:
        points: `(n, 2)`.
        count: Points to choose, from 1 on.
        first: Index of the first one.
    """
    chosen = [first]
    distance = np.full(len(points), np.inf)
    while len(chosen) < count:
        distance = np.minimum(distance, ((points - points[chosen[-1]]) ** 2).sum(1))
        chosen.append(int(distance.argmax()))
    return np.array(chosen)


def draw_views(grid: Grid, count: int, share: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Draw the views of one image, of which the first is the image itself.

    Args:
        grid: Patches of the image.
        count: Views V.
        share: Greatest shift, as a share of the rows or columns; it is rounded to whole patches.
        rng: Random state.

    Returns:
        Shifts `(V, 2)` in patches, down the rows and along the columns: a view shows at (r, c) what the image has at
        (r, c) + shift. And `(V,)`, whether a view is then mirrored from left to right.
    """
    limit = np.array([round(share * side) for side in grid])
    pool = rng.integers(-limit, limit, size=(POOL * count, 2), endpoint=True)
    shifts = pool[farthest_points(pool, count, int(rng.integers(len(pool))))]
    flips = rng.integers(0, 2, size=count).astype(bool)
    shifts[0], flips[0] = 0, False
    return torch.from_numpy(shifts), torch.from_numpy(flips)


def shift(raster: Tensor, shifts: Tensor, flips: Tensor, fill: Tensor) -> Tensor:
    """Shift and mirror rasters.

    Args:
        raster: `(B, C, H, W)`.
        shifts: `(B, 2)`, by rows and columns of the raster; see `draw_views`.
        flips: `(B,)`.
        fill: `(C,)`, values outside of the raster.
    """
    height, width = raster.shape[-2:]
    shifts, flips, device = shifts.to(raster.device), flips.to(raster.device), raster.device
    rows = torch.arange(height, device=device) + shifts[:, :1]
    columns = torch.arange(width, device=device) + shifts[:, 1:]
    columns = torch.where(flips[:, None], columns.flip(-1), columns)
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    batch = torch.arange(len(raster), device=device)[:, None, None]
    rows, columns = rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None, :]
    moved = torch.where(inside[..., None], raster[batch, :, rows, columns], fill.to(raster))
    return moved.permute(0, 3, 1, 2)


def averaged(
    tower: Callable[[Tensor], Tensor], pixels: Tensor, grid: Grid, shifts: Tensor, flips: Tensor, fill: Tensor
) -> Tensor:
    """Mean feature `(B, N, D)` of every patch over the views that show it.

    Args:
        tower: Maps images to the features of their patches, `(B, N, D)`.
        pixels: `(B, C, H, W)`.
        grid: Rows and columns of the N patches.
        shifts: `(B, V, 2)` in patches; the first view of an image must show all of it.
        flips: `(B, V)`.
        fill: `(C,)`, pixel values outside of the image.
    """
    unit = torch.tensor([pixels.shape[-2] // grid.rows, pixels.shape[-1] // grid.columns])
    places = torch.arange(grid.size, device=pixels.device).view(1, 1, *grid).expand(len(pixels), -1, -1, -1)
    outside = torch.tensor([grid.size])
    total = count = None
    for moved_by, mirrored in zip(shifts.unbind(1), flips.unbind(1), strict=True):
        features = tower(shift(pixels, moved_by * unit, mirrored, fill))
        shown = shift(places, moved_by, mirrored, outside).flatten(1)[..., None]
        if total is None or count is None:  # the last row gathers tokens outside of the image
            total = features.new_zeros(len(pixels), grid.size + 1, features.shape[-1])
            count = features.new_zeros(len(pixels), grid.size + 1, 1)
        total.scatter_add_(1, shown.expand_as(features), features)
        count.scatter_add_(1, shown, torch.ones_like(features[..., :1]))
    assert total is not None and count is not None
    return total[:, :-1] / count[:, :-1]
