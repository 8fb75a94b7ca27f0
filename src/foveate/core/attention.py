"""Attention weights that methods read: rows of some queries, attention paid and received.

They are computed in blocks of rows of at most `BLOCK` weights; a full attention matrix never exists. `eager_attention`
is the plain attention of foveate's own models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

#: Weights of the largest block of attention that exists at a time, over all heads.
BLOCK = 2**23

#: Masks that are added to logits hide by this or less: -10,000 is common, and -9,984 in bfloat16. The weight of what is
#: hidden is exactly zero, in every precision.
_HIDDEN = -9_000.0


def repeat_kv(states: Tensor, heads: int) -> Tensor:
    """Keys or values (..., H', K, d) repeated for the H query heads that share them: (..., H, K, d)."""
    shared = states.shape[-3]
    return states if shared == heads else states.repeat_interleave(heads // shared, dim=-3)


def row_blocks(rows: Tensor, row_size: int) -> tuple[Tensor, ...]:
    """Rows (r,) in parts whose attention has at most `BLOCK` weights, at least one row each.

    Args:
        rows: Indices of queries.
        row_size: Weights of one row over all heads (and sequences): (B *) H * K.
    """
    return rows.split(max(1, BLOCK // max(row_size, 1)))


def may_attend(mask: Tensor) -> Tensor:
    """A mask as bool, True where a query may attend to a key.

    Args:
        mask: Bool; whole numbers, 0 for what is hidden; or added to logits, with about -10,000 or less there.
    """
    return mask > _HIDDEN if mask.is_floating_point() else mask > 0


def attention_logits(query: Tensor, key: Tensor, scaling: float, mask: Tensor | None = None) -> Tensor:
    """Logits (..., H, r, K) float32 of some rows.

    Args:
        query: (..., H, r, d).
        key: (..., H', K, d), H' divides H.
        scaling: Factor of the logits.
        mask: Broadcasts to the logits, bool (True: may attend) or added; None: all may.
    """
    logits = (query @ repeat_kv(key, query.shape[-3]).transpose(-1, -2)).float() * scaling
    if mask is None:
        return logits
    return logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask.float()


def attention_weights(query: Tensor, key: Tensor, scaling: float, mask: Tensor | None = None) -> Tensor:
    """Attention (..., H, r, K) float32 of some rows; see `attention_logits`.

    A row that may attend to nothing is NaN.
    """
    return attention_logits(query, key, scaling, mask).softmax(dim=-1)


def weight_blocks(
    query: Tensor, key: Tensor, scaling: float, rows: Tensor, mask: Callable[[Tensor], Tensor | None]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Attention of the queries `rows`, block by block.

    Args:
        query: (..., H, L, d).
        key: (..., H', K, d), H' divides H.
        scaling: Factor of the logits.
        rows: (r,) indices of queries.
        mask: Gives the mask of some rows; see `attention_logits`.

    Yields:
        Some of the rows (b,), and their attention (..., H, b, K) float32.
    """
    # Repeated here, once: a block then has keys of as many heads as queries.
    key = repeat_kv(key, query.shape[-3])
    for some in row_blocks(rows, math.prod(query.shape[:-2]) * key.shape[-2]):
        yield some, attention_weights(query[..., some, :], key, scaling, mask(some))


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[Tensor, Tensor]:
    """Attention by two matrix products, softmax in float32; heads (B, heads, N, head_dim).

    There is no mask to add: the caller passes only tokens that may see each other.
    """
    weights = (query @ key.transpose(2, 3)) * scaling
    weights = weights.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2), weights


@dataclass(frozen=True)
class Attention:
    """Queries and keys of one sequence at one layer, rotated.

    Args:
        query: (H, L, d) of the new tokens.
        key: (H', K, d) of all tokens that the layer remembers, the new ones last; H' divides H.
        scaling: Factor of the logits.
        key_mask: (K,) bool, False for padding; None: there is none.
        allowed: (L, K) bool, which keys each query may attend to, where a user's mask says so; None: causal.
    """

    query: Tensor
    key: Tensor
    scaling: float
    key_mask: Tensor | None = None
    allowed: Tensor | None = None

    @property
    def past(self) -> int:
        """Tokens before the new ones."""
        return self.key.shape[1] - self.query.shape[1]

    def visible(self, rows: Tensor, indices: Tensor | None = None) -> Tensor:
        """(r,) how many tokens, or how many of the new tokens `indices` (N,), the new tokens `rows` may see."""
        if self.allowed is not None:
            allowed = self.allowed[rows]
            return (allowed if indices is None else allowed[:, indices + self.past]).sum(dim=1).float()
        mask = (
            self.key.new_ones(self.key.shape[1], dtype=torch.float32)
            if self.key_mask is None
            else self.key_mask.float()
        )
        if indices is not None:
            mask = torch.zeros_like(mask).index_copy(0, indices + self.past, mask[indices + self.past])
        return mask.cumsum(dim=0)[rows + self.past]

    def mask(self, rows: Tensor) -> Tensor:
        """(r, K) bool, which keys the new tokens `rows` may attend to."""
        if self.allowed is not None:
            mask = self.allowed[rows]
        else:
            mask = torch.arange(self.key.shape[1], device=rows.device) <= (rows + self.past)[:, None]
        return mask if self.key_mask is None else mask & self.key_mask

    def rows(self, rows: Tensor) -> Tensor:
        """Attention (H, r, K) float32 of the new tokens `rows` (r,), at once."""
        return attention_weights(self.query[:, rows], self.key, self.scaling, self.mask(rows))

    def blocks(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The same in blocks; see `weight_blocks`."""
        return weight_blocks(self.query, self.key, self.scaling, rows, self.mask)

    def attention_from(self, rows: Tensor, indices: Tensor) -> Tensor:
        """Attention (r, N) that each of the new tokens `rows` pays to the new tokens `indices`, mean over heads."""
        paid = [weights[:, :, indices + self.past].mean(dim=0) for _, weights in self.blocks(rows)]
        return torch.cat(paid) if paid else self.query.new_zeros(0, len(indices), dtype=torch.float32)

    def attention_received(self, rows: Tensor, indices: Tensor) -> Tensor:
        """Attention (N,) that the new tokens `rows` pay to the new tokens `indices`, mean over heads and rows."""
        total = torch.zeros(len(indices), dtype=torch.float32, device=indices.device)
        for _, weights in self.blocks(rows):
            total += weights[:, :, indices + self.past].sum(dim=1).mean(dim=0)
        return total / max(len(rows), 1)
