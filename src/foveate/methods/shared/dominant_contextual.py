"""Dominant tokens, and the rest merged into contextual tokens (VisionZip, VisionDrop)."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.tokens import Selection, in_order, merge_tokens, other_indices, topk_indices, wide


def merge_contextual(
    features: Tensor, scores: Tensor, keys: Tensor, dominant: int, contextual: int, *, doubled: bool = False
) -> Selection:
    """The `dominant` tokens of the highest scores, and all others merged into `contextual` ones.

    Of the M others, in order, every (M // contextual)-th is a target; the rest join the target whose key has the
    greatest cosine with their own. A contextual token takes the place of its target and is the mean of its members.

    Args:
        features: (N, D).
        scores: (N,).
        keys: (N, d).
        dominant: From 0 on.
        contextual: From 0 on; dominant + contextual is less than N.
        doubled: As in the authors' codes, contextual tokens are target + mean(others that joined), and are read after
            all dominant ones.
    """
    best = topk_indices(scores.float(), dominant)
    if not contextual:
        return Selection(best)
    rest = other_indices(best, len(features))
    targets = rest[:: max(1, len(rest) // contextual)][:contextual].contiguous()
    indices = torch.cat([best, targets]).sort().values
    x = F.normalize(keys.float(), dim=-1)
    assignment = torch.searchsorted(indices, targets)[(x @ x[targets].T).argmax(dim=1)]
    assignment[indices] = torch.arange(len(indices), device=features.device)
    selection = merge_tokens(features, indices, assignment)
    if not doubled:
        return selection
    joined = assignment.index_fill(0, indices, -1)  # without the tokens at `indices`
    others = merge_tokens(features, indices, joined).features
    assert others is not None
    out = wide(features[indices]) + wide(others)
    last = torch.isin(indices, targets).to(torch.int8).argsort(stable=True)
    return in_order(replace(selection, features=out.to(features.dtype)), features, last)
