"""HACK: small cache budgets for contextual heads, larger ones for structural heads (arXiv 2504.09261, AAAI 2026).

Maths only; `base.py` applies it to a cache. The paper's numbers for the share of contextual heads, the two budgets, the
observed queries and the protected tokens could not be verified: the defaults of `foveate.methods.kv_cache.base.Hack`
are our own choice.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.counting import share_of
from foveate.core.errors import FoveateError


def head_variance(attention: Tensor) -> Tensor:
    """How much the attention of a head differs from query to query: sigma = sum over keys of Var over queries.

    Vertical stripes (the same keys for all queries) give 0; diagonals give much.

    Args:
        attention: (..., m, n), rows of m queries.

    Returns:
        (...,).
    """
    return attention.var(dim=-2, unbiased=False).sum(dim=-1)


def contextual_heads(variance: Tensor, share: float) -> Tensor:
    """Which heads (L, H) are contextual: the round(share * L * H) of least variance among all layers' heads."""
    count = share_of(share, variance.numel())
    chosen = torch.zeros(variance.numel(), dtype=torch.bool)
    chosen[variance.flatten().argsort(stable=True)[:count].cpu()] = True
    return chosen.view_as(variance)


def head_budgets(variance: Tensor, share: float, average: int, ratio: float, most: int | None = None) -> Tensor:
    """Tokens (L, H) that each head may keep: B_C for contextual heads, B_S for structural ones.

    B = alpha B_C + (1 - alpha) B_S with B_C = floor(ratio * B_S): the sum over heads is exactly average * L * H; what
    does not divide goes, one token each, to the structural heads of greatest variance. Where B_S would be more than
    there is, structural heads keep everything and contextual ones share the rest.

    Args:
        variance: (L, H) of `head_variance`.
        share: alpha, of heads that are contextual.
        average: B, 1 or more.
        ratio: B_C / B_S, above 0 and up to 1.
        most: Tokens that there are at most, `average` or more; None: any number.

    Raises:
        FoveateError: a contextual head would keep nothing.
    """
    chosen = contextual_heads(variance, share)
    contextual, total = int(chosen.sum()), average * variance.numel()
    structural = variance.numel() - contextual
    if not contextual or not structural:
        return torch.full(variance.shape, average)
    # The largest B_S with contextual * floor(ratio * B_S) + structural * B_S <= total.
    more = max(int(total / (contextual * ratio + structural)) - 1, 0)
    while contextual * share_of(ratio, more + 1, "down") + structural * (more + 1) <= total:
        more += 1
    less = share_of(ratio, more, "down")
    if less < 1:
        raise FoveateError(
            f"a budget of {average} tokens a head leaves contextual heads none at ratio {ratio:g}; "
            f"choose a larger budget or ratio."
        )
    ranked = variance.flatten().argsort(descending=True, stable=True).cpu()
    flat = torch.zeros(variance.numel(), dtype=torch.long)
    if most is None or more < most:
        flat[ranked[~chosen.flatten()[ranked]]] = torch.tensor(spread(total - contextual * less, structural))
        flat[chosen.flatten()] = less
    else:
        flat[~chosen.flatten()] = most
        flat[ranked[chosen.flatten()[ranked]]] = torch.tensor(spread(total - structural * most, contextual))
    return flat.view_as(variance)


def spread(total: int, count: int) -> list[int]:
    """`total` as `count` whole numbers that differ by one at most, the larger ones first."""
    base, remainder = divmod(total, count)
    return [base + (place < remainder) for place in range(count)]


def observed_queries(count: int, most: int) -> list[int]:
    """At most `most` of `count` queries, evenly spread: the middle of each of as many equal parts."""
    used = min(count, most)
    return [(2 * part + 1) * count // (2 * used) for part in range(used)]


def keep_contextual(scores: Tensor, budget: int) -> Tensor:
    """The `budget` tokens of greatest score (..., n): indices (..., budget), ascending."""
    return scores.topk(budget, dim=-1).indices.sort(dim=-1).values


def keep_structural(scores: Tensor, budget: int, initial: int, recent: int) -> Tensor:
    """The first `initial` tokens, the last `recent`, and between them those of greatest score.

    Args:
        scores: (..., n), n more than `budget`.
        budget: At least initial + recent.
        initial: Tokens of the coarsest maps.
        recent: Tokens of the newest map.

    Returns:
        Indices (..., budget), ascending.
    """
    length = scores.shape[-1]
    place = torch.arange(length, device=scores.device)
    always = (place < initial) | (place >= length - recent)
    return keep_contextual(scores.masked_fill(always, torch.inf), budget)


def merge_evicted(keys: Tensor, values: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of kept tokens, with each evicted pair merged into the kept key most like it.

    Like the weighted merging of LOOK-M (arXiv 2406.18139): with w_i = max(0, cos(k_i, k_j)) for every evicted i whose
    most similar kept key is j,

        k_j <- (k_j + sum_i w_i k_i) / (1 + sum_i w_i),   and v_j likewise.

    How exactly HACK softens its merging could not be verified.

    Args:
        keys: (B, G, n, d).
        values: (B, G, n, d).
        kept: (B, G, m) indices, ascending.

    Returns:
        Keys and values (B, G, m, d).
    """
    batch, heads, length, width = keys.shape
    index = kept.unsqueeze(3).expand(-1, -1, -1, width)
    stays = torch.zeros(batch, heads, length, dtype=torch.bool, device=keys.device).scatter_(2, kept, True)
    unit = F.normalize(keys.float(), dim=3)
    similarity = unit @ unit.gather(2, index).transpose(2, 3)
    weight, nearest = similarity.max(dim=3)
    weight = weight.clamp(min=0).masked_fill(stays, 0)
    # (B, G, m, n): row j has the weights of what is merged into j.
    shares = torch.zeros_like(similarity.transpose(2, 3)).scatter_(2, nearest.unsqueeze(2), weight.unsqueeze(2))
    total = 1 + shares.sum(dim=3, keepdim=True)
    merged = (
        ((states.gather(2, index).float() + shares @ states.float()) / total).to(states.dtype)
        for states in (keys, values)
    )
    new_keys, new_values = merged
    return new_keys, new_values
