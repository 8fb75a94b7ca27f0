"""Bipartite soft matching, shared by methods that merge tokens inside a vision transformer.

Every second token (set A: indices 0, 2, 4, ...) is matched with the token between them (set B) whose key is most
similar; some of A are then merged into their partners. The rows after it are the rest of A, then all of B: not raster
order, and the next block alternates over that order. ToMe, arXiv 2210.09461, section 3.

Shapes: B images, N rows, N0 tokens at the start (with [CLS], where there is one, at index 0). Images of a batch may
have different numbers of rows: missing ones are at the end and have size 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.tokens import wide


class Tokens(NamedTuple):
    """The rows of a batch inside the encoder, and the original tokens merged into them.

    Args:
        x: (B, N, d).
        size: (B, N, 1) float32 (float64 where x is), original tokens of a row; 0 where an image has no such row.
        source: (B, N0) int64, the row that each original token is in.
    """

    x: Tensor
    size: Tensor
    source: Tensor

    @classmethod
    def start(cls, x: Tensor) -> Tokens:
        """Rows (B, N0, d) of which none has been merged."""
        batch, count, _ = x.shape
        size = torch.ones(batch, count, 1, dtype=wide(x[:0]).dtype, device=x.device)
        return cls(x, size, torch.arange(count, device=x.device).expand(batch, count))

    @property
    def present(self) -> Tensor:
        """(B, N) bool, rows that exist."""
        return self.size[..., 0] > 0


def key_bias(size: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Proportional attention: log(size) (B, 1, 1, N) of keys, to be added to the logits before the softmax.

    A row of s tokens is attended to as s equal tokens would be (ToMe, section 3); a missing row, of size 0, not at all.
    It is an `attn_mask` of `scaled_dot_product_attention`, in `dtype`, that of the queries.
    """
    bias = size[..., 0].log()[:, None, None, :]
    return bias if dtype is None else bias.to(dtype)


class Matching(NamedTuple):
    """The partner of every token of A.

    Args:
        score: (B, |A|) cosine to it; -inf for [CLS] and for missing rows, which never merge.
        partner: (B, |A|) int64, its index in B.
    """

    score: Tensor
    partner: Tensor


def match(keys: Tensor, *, cls: bool, present: Tensor | None = None) -> Matching:
    """The most similar token of B for every token of A; of equal ones the first.

    Args:
        keys: (B, N, d) with N >= 2, keys averaged over the heads.
        cls: Whether token 0 is [CLS]: it is in A and stays out of every merge, never being a source.
        present: (B, N) bool, rows that exist; None: all.
    """
    unit = F.normalize(keys.detach().float(), dim=-1)
    similarity = unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)
    if present is not None:
        similarity.masked_fill_(~present[:, None, 1::2], -torch.inf)
    score, partner = similarity.max(dim=-1)
    if present is not None:
        score.masked_fill_(~present[:, ::2], -torch.inf)
    if cls:
        score[:, 0] = -torch.inf
    return Matching(score, partner)


def best(matching: Matching, count: int | Tensor) -> Tensor:
    """(B, |A|) bool, the `count` (or (B, 1), a number for each image) tokens of A with the highest scores.

    Of equal scores the first wins.
    """
    order = matching.score.argsort(dim=1, descending=True, stable=True)
    chosen = torch.arange(order.shape[1], device=order.device) < count
    return torch.zeros_like(order, dtype=torch.bool).scatter_(1, order, chosen.expand_as(order))


def pick(matching: Matching, amount: int, *, ordered: bool) -> tuple[Tensor, Tensor]:
    """Which tokens of A stay and which are merged, if the `amount` most similar ones are merged in every image.

    Args:
        matching: Of a batch without missing rows.
        amount: At most half of the tokens, [CLS] not counted.
        ordered: Whether those that stay keep their order, which leaves [CLS] first. Otherwise by falling scores.

    Returns:
        (B, |A| - amount) and (B, amount) int64, indices in A.
    """
    order = matching.score.argsort(dim=1, descending=True, stable=True)
    merged, kept = order[:, :amount], order[:, amount:]
    return (kept.sort(dim=1).values if ordered else kept), merged


def place(kept: Tensor, merged: Tensor, partner: Tensor, count: int) -> Tensor:
    """The new row (B, N) int64 of every row: the rest of A, then B; merged ones get the row of their partner.

    Args:
        kept: Of `pick`.
        merged: Of `pick`.
        partner: (B, |A|) of the matching.
        count: N.
    """
    batch, start = kept.shape
    row = kept.new_empty(batch, count)
    row[:, 1::2] = torch.arange(start, start + count // 2, device=row.device)
    row[:, ::2].scatter_(1, kept, torch.arange(start, device=row.device).expand(batch, start))
    row[:, ::2].scatter_(1, merged, start + partner.gather(1, merged))
    return row


def layout(matching: Matching, chosen: Tensor, *, ordered: bool, present: Tensor) -> tuple[Tensor, Tensor]:
    """The new row of every row when the `chosen` tokens of A are merged, a number that may differ between images.

    The rest of A comes first, then all of B. An image of which nothing is chosen keeps its order.

    Args:
        matching: Of N rows.
        chosen: (B, |A|) bool.
        ordered: Whether the rest of A keeps its order, which leaves [CLS] first. Otherwise falling scores order it.
        present: (B, N) bool, rows that exist.

    Returns:
        (B, N) int64, the new row of every row (0 for missing ones, which weigh nothing), and (B,) int64, the new number
            of rows of each image.
    """
    batch, count = present.shape
    half = chosen.shape[1]
    kept = present[:, ::2] & ~chosen
    order = torch.arange(half, device=chosen.device).expand(batch, half)
    if not ordered:
        order = matching.score.argsort(dim=1, descending=True, stable=True)
    among = torch.empty_like(order).scatter_(1, order, kept.gather(1, order).long().cumsum(1) - 1)
    start = kept.sum(1, keepdim=True)
    row = among.new_empty(batch, count)
    row[:, ::2] = torch.where(chosen, start + matching.partner, among)
    row[:, 1::2] = start + torch.arange(count - half, device=row.device)
    unchanged = ~chosen.any(1, keepdim=True)
    row = torch.where(unchanged, torch.arange(count, device=row.device), row)
    return row.masked_fill_(~present, 0), present.sum(1) - chosen.sum(1)


def join(tokens: Tokens, row: Tensor, length: int) -> Tokens:
    """Rows as means, weighted by size, of those that go into them.

    Args:
        tokens: N rows.
        row: (B, N) int64, the new row of every row.
        length: Rows afterwards, of the image that has most.
    """
    batch, _, width = tokens.x.shape
    flat = (row + length * torch.arange(batch, device=row.device)[:, None]).flatten()
    size = tokens.size.new_zeros(batch * length, 1).index_add_(0, flat, tokens.size.flatten(0, 1))
    mass = (wide(tokens.x) * tokens.size).flatten(0, 1)
    x = mass.new_zeros(batch * length, width).index_add_(0, flat, mass) / size.clamp(min=1)
    return Tokens(
        x.view(batch, length, width).to(tokens.x.dtype),
        size.view(batch, length, 1),
        row.gather(1, tokens.source),
    )


def members(tokens: Tokens, *, cls: bool) -> list[tuple[Tensor, Tensor]]:
    """For each image (k,) int64, the first patch of every row, ascending, and (N,) the row of every patch in them.

    Patches are counted without [CLS]. Only the values matter: the rows themselves may be in any order.
    """
    first = first_member(tokens)
    order = first.argsort(dim=1, stable=True)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    return [
        (begin[int(cls) : count] - int(cls), rows[int(cls) :] - int(cls))
        for begin, rows, count in zip(
            first.gather(1, order), rank.gather(1, tokens.source), tokens.present.sum(1).tolist(), strict=True
        )
    ]


def first_member(tokens: Tokens) -> Tensor:
    """(B, N) int64, the first original token of every row; N0 for missing rows."""
    batch, start = tokens.source.shape
    count = tokens.x.shape[1]
    numbers = torch.arange(start, device=tokens.source.device).expand(batch, start)
    first = numbers.new_full((batch, count), start)
    return first.scatter_reduce_(1, tokens.source, numbers, "amin")
