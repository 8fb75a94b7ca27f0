"""Super tokens: soft clusters of the tokens of a raster, each made of 3 x 3 neighbouring cells.

Shapes: B images, D channels, N = rows * columns cells, P tokens of a cell.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.tokens import Grid, wide

#: Added to sums that are divided by, as in the authors' code.
EPSILON = 1e-12


class Association(NamedTuple):
    """Which super tokens the tokens belong to, without gradients.

    Args:
        weights: `(B, N, P, 9)`, of every token for the super tokens of its cell and of the cells around it, row-major.
        mass: `(B, 1, rows, columns)`, the sum of the weights for every super token.
    """

    weights: Tensor
    mass: Tensor


def cells_of(raster: Tensor, side: int) -> tuple[Tensor, Grid]:
    """Cut `(B, D, H, W)`, padded with zeros at the right and the bottom, into cells `(B, N, P, D)`, and their grid."""
    height, width = raster.shape[-2:]
    padded = F.pad(raster, (0, -width % side, 0, -height % side))
    grid = Grid(padded.shape[-2] // side, padded.shape[-1] // side)
    cells = padded.unflatten(3, (grid.columns, side)).unflatten(2, (grid.rows, side))
    return cells.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2), grid


def raster_of(cells: Tensor, grid: Grid, side: int, height: int, width: int) -> Tensor:
    """The inverse of `cells_of`: `(B, N, P, D)` to `(B, D, height, width)`, without the padding."""
    raster = cells.unflatten(2, (side, side)).unflatten(1, grid).permute(0, 5, 1, 3, 2, 4)
    return raster.flatten(4, 5).flatten(2, 3)[..., :height, :width]


def neighbors(tokens: Tensor) -> Tensor:
    """Super tokens `(B, D, rows, columns)` around every cell, `(B, N, D, 9)`; zeros where there is none."""
    return F.unfold(tokens, 3, padding=1).unflatten(1, (tokens.shape[1], 9)).permute(0, 3, 1, 2)


def sum_over_neighbors(parts: Tensor, grid: Grid) -> Tensor:
    """The transpose of `neighbors`: what every cell gives to the 9 around it, `(B, N, D, 9)` to a sum for each.

    Returns:
        `(B, D, rows, columns)`; parts for cells that do not exist are lost.
    """
    return F.fold(parts.permute(0, 2, 3, 1).flatten(1, 2), grid, 3, padding=1)


@torch.no_grad()
def associate(cells: Tensor, grid: Grid, iterations: int = 1, real: Tensor | None = None) -> Association:
    """Associate tokens with super tokens that start as the means of the cells.

        S = means of the cells
        Q = softmax over the 9 neighbors (X S^T / sqrt(D))
        S = Q^T X / (Q^T 1), and Q anew, `iterations` - 1 times

    There are no gradients, as in the authors' code: they reach X through `sample` and `spread` alone.

    Args:
        cells: X, `(B, N, P, D)`.
        grid: Of the cells.
        iterations: How often Q is computed.
        real: `(1, N, P, 1)`, 1 for tokens and 0 for padding: cells at the border share their weights among the
            neighbors that exist, and padding has none. None: neighbors that do not exist are zero vectors with a share
            in the softmax, and padding counts.
    """
    counts = cells.shape[2] if real is None else real.sum(2)
    tokens = (cells.sum(2) / counts).mT.unflatten(2, grid)
    association = _associated(cells, tokens, grid, real)
    for _ in range(iterations - 1):
        tokens = sample(cells, association, grid)
        association = _associated(cells, tokens, grid, real)
    return association


def _associated(cells: Tensor, tokens: Tensor, grid: Grid, real: Tensor | None) -> Association:
    """The association with super tokens `(B, D, rows, columns)`, see `associate`."""
    logits = wide(cells @ neighbors(tokens)) * cells.shape[-1] ** -0.5
    if real is not None:
        logits = logits.masked_fill(neighbors(torch.ones_like(tokens[:1, :1])) == 0, -torch.inf)
    weights = logits.softmax(-1)
    if real is not None:
        weights = weights * real
    return Association(weights, sum_over_neighbors(weights.sum(2)[:, :, None], grid))


def sample(cells: Tensor, association: Association, grid: Grid) -> Tensor:
    """Super tokens `(B, D, rows, columns)`, means of the tokens `(B, N, P, D)` by their weights."""
    sums = sum_over_neighbors(cells.mT @ association.weights.to(cells.dtype), grid)
    return (wide(sums) / (association.mass + EPSILON)).to(cells.dtype)


def spread(tokens: Tensor, association: Association) -> Tensor:
    """Cells `(B, N, P, D)` whose tokens are sums of the super tokens `(B, D, rows, columns)` by their weights."""
    return association.weights.to(tokens.dtype) @ neighbors(tokens).mT
