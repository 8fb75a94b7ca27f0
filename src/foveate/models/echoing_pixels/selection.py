"""Selection from one pool of audio and visual tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.core.counting import share_of


def pool_counts(pool: Tensor, ratio: float) -> Tensor:
    """Tokens `(B,)` that stay of a pool `(B, L)`: `max(1, ceil(ratio n))`, 0 of an empty pool."""
    sizes = pool.sum(dim=1)
    return share_of(float(ratio), sizes, "up").clamp(min=1).minimum(sizes)


def select_tokens(
    scores: Tensor,
    pool: Tensor,
    counts: Tensor,
    temperature: float = 1.0,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Keep the tokens of each pool with the highest scores, with weights that pass gradients to all scores.

        y = softmax((scores + noise) / temperature)    over the pool
        h = 1 for the `counts` largest y, else 0
        w = h - stopgrad(y) + y                         the straight-through estimator

    Args:
        scores: `(B, L)`.
        pool: `(B, L)` bool, the tokens to choose from.
        counts: `(B,)` tokens to keep.
        temperature: Of the softmax.
        noise: `(B, L)` Gumbel noise.

    Returns:
        The kept tokens `(B, L)` bool, and w `(B, L)`, 0 outside of the pool.
    """
    logits = scores if noise is None else scores + noise
    logits = (logits.float() / temperature).masked_fill(~pool, -torch.inf)
    rank = logits.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    kept = pool & (rank < counts[:, None])
    # A row without a pool has no softmax.
    y = logits.masked_fill(~pool.any(dim=1, keepdim=True), 0.0).softmax(dim=1).masked_fill(~pool, 0.0)
    return kept, kept.float() - y.detach() + y


def kept_columns(kept: Tensor) -> Tensor:
    """Columns `(B, P)` of the kept tokens `(B, L)` in their order, -1 for padding on the left."""
    counts = kept.sum(dim=1)
    longest = int(counts.max())
    columns = kept.to(torch.uint8).argsort(dim=1, stable=True)[:, kept.shape[1] - longest :]
    padding = torch.arange(longest, device=kept.device) < (longest - counts)[:, None]
    return columns.masked_fill(padding, -1)
