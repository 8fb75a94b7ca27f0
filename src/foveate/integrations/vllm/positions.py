"""Positions of image tokens, passed through vLLM in extra columns of their embeddings.

Embeddings may be in bfloat16, which has whole numbers up to 256 only; row and column are carried in two digits each.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Columns that `places` and `nowhere` add: two digits of the row and two of the column.
COLUMNS = 4
_BASE = 128


def places(indices: Tensor, columns: int, like: Tensor) -> Tensor:
    """Columns (k, 4) for tokens at `indices` (k,) of a raster with `columns` columns, in the dtype of `like`."""
    row, column = indices // columns, indices % columns
    return torch.stack((row // _BASE, row % _BASE, column // _BASE, column % _BASE), dim=1).to(like)


def nowhere(like: Tensor) -> Tensor:
    """Columns (n, 4) for the n tokens of a clip, whose positions need no correction."""
    return like.new_zeros(len(like), COLUMNS)


def offsets(carried: Tensor) -> Tensor:
    """Rows and columns (2, k) int64 of tokens, from the columns (k, 4) of their embeddings."""
    high_row, low_row, high_column, low_column = carried.long().T
    return torch.stack((high_row * _BASE + low_row, high_column * _BASE + low_column))
