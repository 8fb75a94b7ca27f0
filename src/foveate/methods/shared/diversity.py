"""Greedy selection of diverse vectors.

A greedy selection reads one row of the similarity matrix a pick. `Cosines` gives such rows without waiting for the
device, from the matrix when that is cheaper than a matrix-vector product a pick, else from the vectors.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

#: From the index (1,) of a token to the row (N,) of its similarities.
Row = Callable[[Tensor], Tensor]

#: Tokens up to which the similarity matrix is held (256 MiB).
_MOST = 8192


class Cosines:
    """Cosine similarities of the vectors x (N, D), in float32: `cosines(place)` is a row (N,).

    A row of a matrix product costs a tenth to a twentieth of a matrix-vector product, which reads all of `x` for
    every pick; so the matrix pays from about N / 16 picks on.

    Args:
        x: (N, D), any precision.
        picks: How many rows will be asked for.
    """

    def __init__(self, x: Tensor, picks: int) -> None:
        self.x = F.normalize(x.float(), dim=-1)
        self.matrix = gram(self.x) if len(x) <= _MOST and 16 * picks >= len(x) else None

    def __call__(self, place: Tensor) -> Tensor:
        """Similarities (N,) to the token at `place` (1,)."""
        if self.matrix is not None:
            return self.matrix.index_select(0, place)[0]
        return self.x @ self.x.index_select(0, place)[0]

    def nearest(self) -> Tensor:
        """Similarity (N,) of every vector to the one that is most like it."""
        nearest = []
        for start in range(0, len(self.x), 1024):
            if self.matrix is not None:
                rows = self.matrix[start : start + 1024].clone()
            else:
                rows = self.x[start : start + 1024] @ self.x.T
            rows.diagonal(start).fill_(-torch.inf)  # no vector is its own neighbour
            nearest.append(rows.amax(dim=1))
        return torch.cat(nearest)


def gram(x: Tensor, block: int = 256) -> Tensor:
    """The products (N, N) of all rows of x, exactly symmetric: half of the blocks are computed, the others mirrored."""
    out = x.new_empty(len(x), len(x))
    for start in range(0, len(x), block):
        rows = slice(start, start + block)
        part = x[rows] @ x[start:].T
        out[rows, start:] = part
        out[start:, rows] = part.T
    return out


def farthest_first(row: Row, first: Tensor, count: int) -> Tensor:
    """Indices (count,) by max-min: each the one whose greatest similarity to those before is least; `first` is (1,).

    Of equal ones the first wins.
    """
    return _greedy(row, first, count, torch.maximum)


def max_sum(row: Row, first: Tensor, count: int) -> Tensor:
    """Indices (count,) by max-sum: each the one whose similarities to those before have the least sum."""
    return _greedy(row, first, count, torch.add)


def _greedy(row: Row, first: Tensor, count: int, gather: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    picks, similar = [first], None
    for _ in range(1, count):
        similar = row(picks[-1]).clone() if similar is None else gather(similar, row(picks[-1]))
        similar.index_fill_(0, picks[-1], torch.inf)  # picked ones stay picked: inf outlasts both max and sum
        picks.append(similar.argmin(dim=0, keepdim=True))
    return torch.cat(picks)


def least_similar_to_pivots(x: Tensor, pivots: Tensor, others: Tensor, count: int) -> Tensor:
    """Indices (count,) of pivots and, for each in turn, of tokens not yet taken and least similar to it (DART).

    Every pivot gets equally many; what does not divide equally goes to the first ones. Of equal tokens the first wins.

    Args:
        x: (N, D), compared by cosine.
        pivots: (p,) indices, at most `count`; they are taken.
        others: (q, D) pivots that are no tokens of x; they come last.
        count: Tokens in all.
    """
    directions = F.normalize(torch.cat([x[pivots].float(), others.float()]), dim=-1)
    taken = torch.zeros(len(x), dtype=torch.bool, device=x.device).index_fill_(0, pivots, True)
    share, more = divmod(count - len(pivots), len(directions))
    chosen = [pivots]
    for number, similarity in enumerate(directions @ F.normalize(x.float(), dim=-1).T):
        least_similar = similarity.masked_fill(taken, torch.inf).argsort(stable=True)[: share + (number < more)]
        taken.index_fill_(0, least_similar, True)
        chosen.append(least_similar)
    return torch.cat(chosen)


def without_duplicates(x: Tensor, count: int, step: int) -> Tensor:
    """Indices (count,) of the vectors (N, D) that remain when near duplicates are dropped, `step` at a time.

    All similarities are computed once; a round only looks them up, and its sizes are known beforehand.
    """
    rest = torch.arange(len(x), device=x.device)
    if not count:
        return rest[:0]
    similarity = gram(F.normalize(x.float(), dim=-1))
    while len(rest) > count:
        even, odd = rest[::2], rest[1::2]
        dropped = min(step, len(rest) - count, len(even))
        score = similarity.index_select(0, odd).amax(dim=0)[even]  # symmetric: whole rows are read, never columns
        rest = torch.cat([even[score.argsort(descending=True, stable=True)[dropped:]], odd])
    return rest
