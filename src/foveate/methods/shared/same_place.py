"""Chains of tokens at the same place in neighbouring frames, for methods that merge over time."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import floor

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.core.tokens import Crop, Selection, merge_tokens, ranked, wide


def check_merging(name: str, cost: float, threshold: float) -> None:
    """Refuse a cost that is no share, and a threshold that is no cosine."""
    if not 0 < cost <= 1:
        raise FoveateError(f"{name}: cost is a share, above 0 up to 1, not {cost}.")
    if not -1 <= threshold <= 1:
        raise FoveateError(f"{name}: threshold is a cosine, -1 to 1, not {threshold}.")


def by_place(crops: Sequence[Crop], device: torch.device) -> tuple[Tensor, Tensor]:
    """The tokens of a clip by place, and at each place by time.

    Args:
        crops: Its frames, of one grid; frames may lack tokens. Crops that are no frames have no places in common.
        device: Where the result shall be.

    Returns:
        (n,) indices of the tokens, and (n,) bool: the token follows another one at its place.
    """
    if not crops or len({crop.grid for crop in crops}) > 1 or any(crop.kind != "frame" for crop in crops):
        order = torch.cat([crop.present for crop in crops]) if crops else torch.zeros(0, dtype=torch.int64)
        return order.to(device), torch.zeros(len(order), dtype=torch.bool, device=device)
    index = torch.stack([crop.index for crop in crops], dim=1).to(device)
    place, time = (index >= 0).nonzero(as_tuple=True)
    follows = torch.zeros(len(place), dtype=torch.bool, device=device)
    follows[1:] = place[1:] == place[:-1]
    return index[place, time], follows


def chains(features: Tensor, crops: Sequence[Crop], threshold: float, limit: Fraction) -> Tensor:
    """Which tokens are merged into an earlier one at their place: those that are like the one before them there.

    Args:
        features: (N, D); tokens in no crop are not merged.
        crops: See `by_place`.
        threshold: Cosine from which a token is merged.
        limit: Least number of tokens that shall stay. Where the threshold leaves no more, the most similar tokens are
            merged, as many as leave it.

    Returns:
        (N,) the token that each is merged into, the first of its chain; itself for one that stays.
    """
    count, device = len(features), features.device
    order, follows = by_place(crops, device)
    x = wide(features)[order]
    cosine = torch.full((len(order),), -torch.inf, dtype=x.dtype, device=device)
    cosine[1:] = F.cosine_similarity(x[1:], x[:-1], dim=-1)
    cosine = cosine.masked_fill(~follows, -torch.inf)
    merged = follows & (cosine >= threshold)
    if int(merged.sum()) >= count - limit:
        merged = torch.zeros_like(merged)
        merged[ranked(cosine, max(0, floor(count - limit)))] = True
    number = torch.arange(len(order), device=device)
    first = torch.where(merged, 0, number).cummax(dim=0).values
    target = torch.arange(count, device=device)
    target[order] = order[first]
    return target


def merge_chains(features: Tensor, target: Tensor) -> Selection:
    """The mean of every chain of tokens, in the place of its first.

    Args:
        features: (N, D).
        target: (N,) the first token of the chain of each, -1 for one that goes.
    """
    used = target >= 0
    indices, rows = target[used].unique(return_inverse=True)
    if len(indices) == len(rows):
        return Selection(indices)
    assignment = torch.full_like(target, -1)
    assignment[used] = rows
    return merge_tokens(features, indices, assignment)
