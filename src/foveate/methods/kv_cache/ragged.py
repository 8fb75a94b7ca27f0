"""Keys and values of one layer whose heads hold different numbers of tokens, packed without gaps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """Heads that hold equally many tokens.

    Args:
        heads: Numbers of the heads, ascending.
        keys: (B, G, n, d).
        values: (B, G, n, d).
        positions: (B, G, n) int32, ascending: which token of the sequence each is; None while they are all of them.
    """

    heads: tuple[int, ...]
    keys: Tensor
    values: Tensor
    positions: Tensor | None = None

    @property
    def length(self) -> int:
        """Tokens of every head."""
        return self.keys.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of all that is stored."""
        stored = [self.keys, self.values, *([] if self.positions is None else [self.positions])]
        return sum(tensor.numel() * tensor.element_size() for tensor in stored)

    def token_indices(self) -> Tensor:
        """The positions (B, G, n), also where they are not stored."""
        if self.positions is not None:
            return self.positions
        batch, count, length, _ = self.keys.shape
        return torch.arange(length, dtype=torch.int32, device=self.keys.device).expand(batch, count, length)

    def of(self, rows: list[int]) -> Group:
        """Only some of its heads, by their place in the group."""
        if rows == list(range(len(self.heads))):
            return self
        positions = None if self.positions is None else self.positions[:, rows]
        return Group(tuple(self.heads[row] for row in rows), self.keys[:, rows], self.values[:, rows], positions)

    def keep(self, indices: Tensor) -> Group:
        """Only the tokens at `indices` (B, G, m) of the group; what it returns shares no memory with it."""
        index = indices.unsqueeze(3).expand(-1, -1, -1, self.keys.shape[3])
        return Group(
            self.heads,
            self.keys.gather(2, index),
            self.values.gather(2, index),
            self.token_indices().gather(2, indices).contiguous(),
        )


class RaggedLayer:
    """Keys and values of one layer of a cache."""

    def __init__(self, heads: int) -> None:
        self.heads = heads
        self.groups: list[Group] = []
        #: Tokens appended so far, dropped ones included.
        self.appended = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all that is stored."""
        return sum(group.nbytes for group in self.groups)

    @property
    def lengths(self) -> list[int]:
        """Tokens that every head holds."""
        by_head = {head: group.length for group in self.groups for head in group.heads}
        return [by_head.get(head, 0) for head in range(self.heads)]

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Append keys and values (B, H, n, d) of new tokens."""
        new = keys.shape[2]
        if not self.groups:
            # Copies: a view would keep the larger tensor in memory.
            copies = (tensor.clone(memory_format=torch.contiguous_format) for tensor in (keys, values))
            self.groups = [Group(tuple(range(self.heads)), *copies)]
        else:
            self.groups = [self._longer(group, keys, values, new) for group in self.groups]
        self.appended += new

    def _longer(self, group: Group, keys: Tensor, values: Tensor, new: int) -> Group:
        heads = slice(None) if len(group.heads) == self.heads else list(group.heads)
        positions = group.positions
        if positions is not None:
            fresh = torch.arange(self.appended, self.appended + new, dtype=torch.int32, device=positions.device)
            positions = torch.cat([positions, fresh.expand(*positions.shape[:2], new)], dim=2)
        return Group(
            group.heads,
            torch.cat([group.keys, keys[:, heads]], dim=2),
            torch.cat([group.values, values[:, heads]], dim=2),
            positions,
        )

    def attend(self, queries: Tensor) -> Tensor:
        """Attention output (B, H, m, d) of queries (B, H, m, d). Every query attends to all that its head holds."""
        if len(self.groups) == 1:
            return F.scaled_dot_product_attention(queries, self.groups[0].keys, self.groups[0].values)
        read = torch.empty_like(queries)
        for group in self.groups:
            heads = list(group.heads)
            read[:, heads] = F.scaled_dot_product_attention(queries[:, heads], group.keys, group.values)
        return read

    def clear(self) -> None:
        """Drop everything."""
        self.groups = []
