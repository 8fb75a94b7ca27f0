"""Multi-head attention of queries to the features of an image, for connectors with learned queries."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

#: Parameters of a linear layer, for names of released weights.
PARTS = ("weight", "bias")


class CrossAttention(nn.Module):
    """Multi-head attention of every query to all keys, with linear maps before and after, as `nn.MultiheadAttention`.

    Args:
        width: `D` of queries, keys and values.
        num_heads: Heads, which divide the width.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Mix the values of every image.

        Args:
            queries: `(B, m, D)`, or `(1, m, D)` where all images share them.
            keys: `(B, N, D)`, or `(1, N, D)` likewise.
            values: `(B, N, D)`.

        Returns:
            `(B, m, D)`.
        """
        projected = (self.q_proj(queries), self.k_proj(keys), self.v_proj(values))
        heads = [x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in projected]
        mixed = F.scaled_dot_product_attention(*(x.expand(len(values), -1, -1, -1) for x in heads))
        return self.out_proj(mixed.transpose(1, 2).flatten(2))
