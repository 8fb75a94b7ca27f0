"""Low-pass filter of a raster of tokens in the frequency domain: the discrete cosine transform and its inverse.

A low-pass filter to a smaller raster is linear, and separable in rows and columns. Along an axis of N tokens that keeps
n frequencies it is the n x N matrix of the inverse transform of size n times the first n rows of the transform of size
N, so that a raster takes one matrix product for each axis.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid, wide


def dct_matrix(size: int) -> np.ndarray:
    """The orthonormal DCT-II as a matrix (size, size) in float64: row k holds the cosine of frequency k."""
    frequency, place = np.arange(size)[:, None], np.arange(size)[None] + 0.5
    rows = math.sqrt(2 / size) * np.cos(math.pi / size * frequency * place)
    rows[0] /= math.sqrt(2)
    return rows


@lru_cache(maxsize=256)
def low_pass_matrix(size: int, kept: int) -> np.ndarray:
    """The filter of one axis (kept, size) in float64, unscaled: constants are multiplied by sqrt(size / kept)."""
    matrix = dct_matrix(kept).T @ dct_matrix(size)[:kept]
    matrix.setflags(write=False)  # it is shared
    return matrix


def low_pass(features: Tensor, grid: Grid, kept: Grid, rescale: bool) -> Tensor:
    """Filter a raster of features to a smaller raster, channel by channel.

    The lowest `kept` frequencies of the orthonormal DCT-II of size `grid` are the coefficients of the result, which is
    the inverse transform of size `kept`. Computed in float32, or in float64 for such features, also under autocast.

    Args:
        features: (..., N, D), row-major.
        grid: Rows and columns of the N features.
        kept: Rows and columns of the result, no more than those of `grid`.
        rescale: Divide by sqrt(N / n), so that a constant raster stays as it is.

    Returns:
        (..., n, D), row-major, of the type of `features`.
    """
    raster = wide(features).unflatten(-2, grid)
    matrices = []
    for size, count in zip(grid, kept, strict=True):
        matrix = low_pass_matrix(size, count) * (math.sqrt(count / size) if rescale else 1.0)
        matrices.append(torch.as_tensor(matrix, dtype=raster.dtype, device=raster.device))
    rows, columns = matrices
    device = "cpu" if features.is_meta else features.device.type  # tensors without data have no autocast
    with torch.autocast(device, enabled=False):
        by_row = (rows @ raster.flatten(-2)).unflatten(-1, raster.shape[-2:])  # (..., r, columns, D)
        filtered = columns @ by_row
    return filtered.flatten(-3, -2).to(features.dtype)


def grid_of_ratio(grid: Grid, ratio: float) -> Grid:
    """The raster that keeps this share of the frequencies of each axis, rounded down, and at least one."""
    return Grid(max(int(grid.rows * ratio), 1), max(int(grid.columns * ratio), 1))


def grid_of_count(grid: Grid, count: int) -> Grid:
    """The raster of exactly `count` tokens whose proportions are nearest to those of `grid`.

    Raises:
        FoveateError: There is none that keeps no axis at more than twice the share of the other.
    """
    possible: dict[float, Grid] = {}
    for rows in range(1, grid.rows + 1):
        columns, rest = divmod(count, rows)
        if not rest and 1 <= columns <= grid.columns:
            stretch = round(abs(math.log(rows * grid.columns / (columns * grid.rows))), 9)
            possible.setdefault(stretch, Grid(rows, columns))
    stretch = min(possible, default=math.inf)
    if stretch > round(math.log(2), 9):
        common = math.gcd(*grid)
        even = (grid.rows // common * side * (grid.columns // common * side) for side in range(1, common + 1))
        raise FoveateError(
            f"a low-pass filter cannot make {count} tokens of {grid.rows} x {grid.columns} patches; possible are "
            f"products of rows and columns in about these proportions, such as {', '.join(map(str, even))}."
        )
    return possible[stretch]


def check_ratio(ratio: object) -> None:
    """Check a share of the frequencies of each axis.

    Raises:
        FoveateError: It is no number above 0 and up to 1.
    """
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 < ratio <= 1:
        raise FoveateError(f"ratio must be a number above 0, up to 1, not {ratio!r}.")
