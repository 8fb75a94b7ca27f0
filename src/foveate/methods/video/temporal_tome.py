"""Token merging over time: tokens of every second frame are merged into similar ones of its neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.tokens import Selection, VisualTokens, merge_tokens, ranked, wide
from foveate.core.video import VideoMethod


@dataclass(frozen=True)
class TemporalToMe(VideoMethod):
    """Merges tokens of every second frame into the most similar tokens of the frames before and behind it.

    The bipartite soft matching of ToMe (Token Merging, arXiv 2210.09461, section 3) with frames in place of every
    second token: A is the frames 0, 2, 4, ..., B those between. Every token of A is matched with the token of its
    neighbours in B that has the greatest cosine to it, wherever that is in the frame, and the most similar pairs are
    merged until `count` tokens are left. Where all of A are not enough, B is the clip of the next round; a single frame
    is halved as in ToMe, into its tokens 0, 2, 4, ... and the others. A row is the mean of all its tokens, and stands
    where the one of B does.

    Our arrangement, not one of the paper, which merges between the layers of a vision transformer by their keys, and in
    video over space and time at once. Tokens are compared as the language model would read them; of equal pairs the
    first wins.
    """

    name: ClassVar[str] = "temporal-tome"
    mechanism: ClassVar = ("similarity",)
    title: ClassVar[str] = "Token Merging: Your ViT But Faster"
    paper: ClassVar[str] = "arXiv 2210.09461"
    positions: ClassVar = "original"

    def select(self, tokens: VisualTokens, count: int) -> Selection:
        """See `VideoMethod.select`."""
        means = wide(tokens.features).clone()
        sizes = means.new_ones(len(means), 1)
        grid = tokens.frame_indices
        row = torch.arange(len(means), device=means.device)
        left = grid.numel()
        while left > count:
            first, second = (grid[::2], grid[1::2]) if len(grid) > 1 else (grid[:, ::2], grid[:, 1::2])
            score, partner = _match(F.normalize(means, dim=-1), first, second)
            merged = ranked(score.flatten(), min(left - count, first.numel()))
            source, target = first.flatten()[merged], partner.flatten()[merged]
            joined = torch.arange(len(means), device=means.device).index_copy(0, source, target)
            row = joined[row]
            mass = (means * sizes).index_add(0, target, means[source] * sizes[source])
            sizes = sizes.index_add(0, target, sizes[source])
            means, left, grid = mass / sizes, left - len(merged), second
        ours = torch.zeros(len(means), dtype=torch.bool, device=means.device).index_fill_(
            0, tokens.frame_indices.flatten(), True
        )
        indices = (ours & (row == torch.arange(len(means), device=means.device))).nonzero().flatten()
        assignment = torch.searchsorted(indices, row).masked_fill(~ours, -1)
        return merge_tokens(tokens.features, indices, assignment)


def _match(unit: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """(Ta, Na) the greatest cosine of every token of A, and the index of the token of B that has it.

    Args:
        unit: (N, D) unit vectors.
        first: (Ta, Na) indices of the tokens of A, by frame.
        second: (Tb, Nb) those of B; frame i of A has frame i - 1 of B before and frame i of B behind it.
    """
    score = unit.new_full(first.shape, -torch.inf)
    partner = torch.zeros_like(first)
    for shift in (1, 0):
        frames = min(len(first) - shift, len(second))
        if frames < 1:
            continue
        others = second[:frames]
        cosine, at = (unit[first[shift : shift + frames]] @ unit[others].transpose(1, 2)).max(dim=2)
        better = cosine > score[shift : shift + frames]
        partner[shift : shift + frames] = torch.where(better, others.gather(1, at), partner[shift : shift + frames])
        score[shift : shift + frames] = torch.maximum(cosine, score[shift : shift + frames])
    return score, partner
