"""Sine and cosine positions on a grid, for connectors whose queries and features have places."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.tokens import Grid


def grid_positions(grid: Grid, width: int) -> Tensor:
    """Positions `(rows * columns, width)`, row-major: of columns in the first half, of rows in the other, as in MAE.

    Each half has the sines, then the cosines, of the place at width / 4 frequencies from 1 down to almost 1 / 10,000.
    """
    frequencies = 10_000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))

    def line(count: int) -> Tensor:
        angles = torch.arange(count, dtype=torch.float64)[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1).float()

    columns = line(grid.columns)[None].expand(grid.rows, -1, -1)
    rows = line(grid.rows)[:, None].expand(-1, grid.columns, -1)
    return torch.cat([columns, rows], dim=-1).flatten(0, 1)


def resized_positions(positions: Tensor, grid: Grid) -> Tensor:
    """Resize positions `(side^2, D)` of a square grid to another grid `(rows * columns, D)`, bicubic, in float32."""
    side = math.isqrt(len(positions))
    raster = positions.float().view(1, side, side, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(raster, tuple(grid), mode="bicubic", align_corners=False)
    return resized[0].flatten(1).T.to(positions.dtype)
