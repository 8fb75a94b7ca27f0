"""ScaleKV: large cache budgets for drafter layers, small ones for refiner layers (arXiv 2505.19602, NeurIPS 2025).

Maths only; `base.py` applies it to a cache. The authors' code (StargazerX0/ScaleKV, MIT) departs from the paper: it
sums raw logits where the paper has softmax, pools with a maximum where the paper averages, and takes queries without
their rotation. Here it is as the paper says, with the maximum as an option.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.methods.kv_cache.hack import spread


def selectivity(attention: Tensor, current: int, top: int) -> Tensor:
    """The attention selectivity index of a layer at a map: high for refiners, low for drafters.

    ASI = E_i[sum of a_ij over the current map] * E_i[sum of the `top` greatest a_ij over earlier maps], means over
    queries i, heads and pictures.

    Args:
        attention: (B, H, m, n).
        current: Tokens of the current map, the last columns.
        top: How many of the earlier ones; all where there are fewer.

    Returns:
        A number; 0 at a map with no earlier one.
    """
    history = attention.shape[-1] - current
    if history == 0:
        return attention.new_zeros(())
    current_share = attention[..., history:].sum(dim=-1).mean()
    return current_share * attention[..., :history].topk(min(top, history), dim=-1).values.sum(dim=-1).mean()


def drafters(index: Tensor, count: int) -> Tensor:
    """Which (layer, map) pairs (L, K) are drafters: the `count` of least index, standardised within each map.

    Maps where all layers are alike count as 0 everywhere.
    """
    centred = index - index.mean(dim=0, keepdim=True)
    deviation = centred.square().mean(dim=0, keepdim=True).sqrt()
    score = torch.where(deviation > 0, centred / deviation.clamp(min=1e-12), 0.0)
    chosen = torch.zeros(index.numel(), dtype=torch.bool)
    chosen[score.flatten().argsort(stable=True)[:count].cpu()] = True
    return chosen.view_as(index)


def layer_budgets(
    drafter: Tensor, uniform: int, start: float, decay: float, available: list[int] | None = None
) -> Tensor:
    """Tokens (L, K) that each layer may hold when map k is read.

    Refiners hold B_r(k) = floor(uniform * (start - decay * k)), drafters share the rest of the map's
    uniform * L tokens (the earlier layers one more where it does not divide). A map whose layers are all of one kind
    is uniform. So the sum over layers is uniform * L at every map, as in the authors' tables of budgets, and with it
    the paper's sum over layers and maps. Where drafters would hold more than there is, they hold everything and
    refiners share the rest.

    Args:
        drafter: (L, K) bool.
        uniform: Mean tokens of a layer.
        start: B_r(0) over uniform, above 0 and up to 1.
        decay: What a refiner loses from map to map, over uniform.
        available: Tokens that came before each map, `uniform` or more; None: any number.

    Raises:
        FoveateError: a refiner would hold nothing.
    """
    layers, maps = drafter.shape
    budgets = torch.full((layers, maps), uniform)
    for place in range(maps):
        column = drafter[:, place]
        drafting = int(column.sum())
        if not drafting or drafting == layers:
            continue
        refiner = int(uniform * (start - decay * place) + 1e-9)
        if refiner < 1:
            raise FoveateError(
                f"refiners would hold nothing at map {place}: {uniform} tokens * ({start:g} - {decay:g} * {place}); "
                f"choose a larger budget or a smaller decay."
            )
        total, refining = uniform * layers, layers - drafting
        shares = spread(total - refiner * refining, drafting)
        if available is None or max(shares) <= available[place]:
            budgets[~column, place] = refiner
            budgets[column, place] = torch.tensor(shares)
        else:
            budgets[column, place] = available[place]
            budgets[~column, place] = torch.tensor(spread(total - available[place] * drafting, refining))
    return budgets


def window(side: int, cells: int) -> list[int]:
    """The observation window: the centre of each cell of a cells x cells grid over a map of side x side tokens.

    Tokens row by row, ascending; on a map smaller than the grid, all tokens.
    """
    if side <= cells:
        return list(range(side * side))
    centres = [(2 * cell + 1) * side // (2 * cells) for cell in range(cells)]
    return [row * side + column for row in centres for column in centres]


def scores(attention: Tensor, pooling: str = "average", kernel: int = 5) -> Tensor:
    """Attention of the window to each token (..., n): sums over its queries (..., w, n), smoothed along the sequence.

    Args:
        attention: (..., w, n) softmax attention of the window.
        pooling: "average" (the paper) or "maximum" (the authors' code).
        kernel: Odd width of the pooling; at the borders only existing tokens count.
    """
    received = attention.sum(dim=-2)
    flat = received.reshape(-1, 1, received.shape[-1])
    if pooling == "maximum":
        smooth = F.max_pool1d(flat, kernel, stride=1, padding=kernel // 2)
    else:
        smooth = F.avg_pool1d(flat, kernel, stride=1, padding=kernel // 2, count_include_pad=False)
    return smooth.view_as(received)


def keep(score: Tensor, budget: int, always: list[int]) -> Tensor:
    """The tokens `always` and the best others: indices (..., budget) of scores (..., n), ascending."""
    marked = score.clone()
    marked[..., always] = torch.inf
    return marked.topk(budget, dim=-1).indices.sort(dim=-1).values
