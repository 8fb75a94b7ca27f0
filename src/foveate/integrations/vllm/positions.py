"""Positions of visual tokens, passed through vLLM in extra columns of their embeddings.

Embeddings may be in bfloat16, which has whole numbers up to 256 only; time, row and column are carried in three digits
each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.core.tokens import Grid

#: Columns that `places` and `nowhere` add: three digits of the time, of the row and of the column.
COLUMNS = 9
_BASE = 128


def places(indices: Tensor, grid: Grid, like: Tensor, step: float = 0.0) -> Tensor:
    """Columns (k, 9) for tokens at `indices` (k,) of an image or of the frames of a clip, in the dtype of `like`.

    Args:
        indices: Places of the tokens, row-major, frame after frame.
        grid: Rows and columns of the image, or of every frame.
        like: A tensor of the dtype wanted.
        step: Positions from a frame to the next; the position of a frame is rounded down.
    """
    frame, cell = indices // grid.size, indices % grid.size
    moved = torch.stack(((frame.double() * step).long(), cell // grid.columns, cell % grid.columns), dim=1)
    return torch.stack((moved // _BASE**2, moved // _BASE % _BASE, moved % _BASE), dim=2).flatten(1).to(like)


def nowhere(like: Tensor) -> Tensor:
    """Columns (n, 9) for n tokens whose positions need no correction."""
    return like.new_zeros(len(like), COLUMNS)


def offsets(carried: Tensor) -> Tensor:
    """Time, row and column (3, k) int64 of tokens, from the columns (k, 9) of their embeddings."""
    high, middle, low = carried.long().unflatten(1, (3, 3)).unbind(2)
    return ((high * _BASE + middle) * _BASE + low).T
