"""DivPrune: the most diverse tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.selection.method import Method
from foveate.tokens import Selection, VisualTokens, kept


@dataclass(frozen=True)
class DivPrune(Method):
    """Keeps the tokens whose least pairwise distance is greatest, found greedily.

    With the distance d(i, j) = 1 - cos(x_i, x_j) of the tokens that the language model would read, the first pick is
    the token whose nearest neighbour is farthest, argmax_i min_{j != i} d(i, j); each further one is the token that is
    farthest from what is picked, argmax_i min_{j in S} d(i, j) (DivPrune, arXiv 2503.02175, eq. 3 and algorithm 1).
    No attention, no text. Newline tokens compete like all others.

    Computed in float32 whatever the model's precision, one matrix-vector product a pick; the authors build the whole
    distance matrix in the model's precision, which gives other picks in half precision. Of equal distances the first
    token wins.
    """

    name: ClassVar[str] = "divprune"
    title: ClassVar[str] = "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models"
    paper: ClassVar[str] = "arXiv 2503.02175"
    whole: ClassVar[bool] = True
    sees_separators: ClassVar[bool] = True

    def select(self, tokens: VisualTokens, count: int) -> Selection:
        """See `Method.select`."""
        x = F.normalize(tokens.features.float(), dim=-1)
        return kept(farthest_first(x, loneliest(x), count))


def loneliest(x: Tensor, block: int = 1024) -> Tensor:
    """Place () of the unit vector (N, D) whose nearest neighbour is farthest, in blocks of rows."""
    nearest = []
    for start in range(0, len(x), block):
        similarity = x[start : start + block] @ x.T
        rows = torch.arange(len(similarity), device=x.device)
        similarity[rows, rows + start] = -torch.inf
        nearest.append(similarity.amax(dim=1))
    return torch.cat(nearest).argmin()


def farthest_first(x: Tensor, first: Tensor, count: int) -> Tensor:
    """Places (count,) of unit vectors (N, D), each the least similar to all before it, from `first` on.

    O(count * N * D) time, O(N) memory beside `x`; nothing waits for the device.
    """
    picks = torch.empty(count, dtype=torch.int64, device=x.device)
    picks[0] = first
    closest = torch.full((len(x),), -torch.inf, device=x.device)
    for step in range(1, count):
        torch.maximum(closest, x @ x[picks[step - 1]], out=closest)
        closest[picks[step - 1]] = torch.inf  # picked ones, whatever rounding says
        picks[step] = closest.argmin()
    return picks
