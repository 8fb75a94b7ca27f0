"""Trees of drafted tokens, as EAGLE-2 grows them (arXiv 2406.16858)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.core.errors import FoveateError


@dataclass(frozen=True)
class Shape:
    """How much is drafted at a time.

    Args:
        depth: Tokens of the longest path.
        top_k: Tokens that follow each token; 1 drafts a chain.
        tokens: Tokens of the whole tree that the model verifies in one pass.
    """

    depth: int = 7
    top_k: int = 10
    tokens: int = 60

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise FoveateError(f"{name} of a draft must be a whole number from 1 on, not {value!r}.")


@dataclass(frozen=True)
class Tree:
    """Drafted tokens that follow one root, which is the last token that was written.

    Args:
        tokens: (n,) token ids.
        parents: (n,) the index of the token that each one follows, -1 for the root; parents come before children.
    """

    tokens: Tensor
    parents: Tensor

    def __post_init__(self) -> None:
        indices = torch.arange(len(self.tokens), device=self.parents.device)
        if self.parents.shape != self.tokens.shape or bool(((self.parents >= indices) | (self.parents < -1)).any()):
            raise FoveateError("in a tree of tokens, each one follows the root (-1) or a token before it.")

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def is_chain(self) -> bool:
        """Whether every token follows the one before it."""
        return bool((self.parents == torch.arange(-1, len(self) - 1, device=self.parents.device)).all())

    def sees(self) -> Tensor:
        """Attention mask (n + 1, n + 1) bool, the root first: each token attends to itself and its ancestors."""
        size = len(self) + 1
        mask = torch.eye(size, dtype=torch.bool, device=self.parents.device)
        for place, parent in enumerate(self.parents.tolist(), 1):
            mask[place] |= mask[parent + 1]
        return mask

    def depths(self) -> Tensor:
        """Depth (n + 1,) of every token; 0 for the root, which is first."""
        return self.sees().sum(dim=1) - 1

    def child(self, parent: int, token: int) -> int | None:
        """The index of the child `token` of `parent` (-1: the root); None where none was drafted."""
        matches = ((self.parents == parent) & (self.tokens == token)).nonzero()
        return int(matches[0]) if len(matches) else None


#: Log-probabilities (k, V) of the next tokens after k tokens (k,), each the child of one of the last call's, by index.
Advance = Callable[[Tensor, Tensor], Tensor]


def grow(first: Tensor, advance: Advance, shape: Shape) -> Tree:
    """EAGLE-2's dynamic tree: expanded where it is likely, then cut to its likeliest tokens.

    With the value of a token the sum of log-probabilities on its path, every level expands the `top_k` most valuable
    tokens of the last one by `top_k` each; of all tokens drafted, the `tokens` most valuable stay. A token is never
    worth more than its parent, so the result is a tree.

    Args:
        first: (V,) log-probabilities of what follows the root.
        advance: Called with the tokens that are expanded and the indices of their parents among those expanded before.
        shape: Depth, width, size.
    """
    width = min(shape.top_k, len(first))
    values, tokens = first.topk(width)
    parents = torch.full_like(tokens, -1)
    all_values, all_tokens, all_parents = [values], [tokens], [parents]
    # The level that is expanded next: indices of its tokens among all, and of their parents in the last level.
    indices, before, count = torch.arange(width, device=first.device), torch.zeros_like(tokens), width
    for _ in range(shape.depth - 1):
        follows = advance(tokens, before)
        gains, next_tokens = follows.topk(width, dim=-1)
        new_values, new_tokens = (values[:, None] + gains).flatten(), next_tokens.flatten()
        parent_rows = torch.arange(len(tokens), device=first.device).repeat_interleave(width)
        all_values.append(new_values)
        all_tokens.append(new_tokens)
        all_parents.append(indices[parent_rows])
        values, chosen = new_values.topk(min(shape.top_k, len(new_values)))
        tokens, before, indices = new_tokens[chosen], parent_rows[chosen], count + chosen
        count += len(new_tokens)
    # Stable: of equal values the earlier token stays, which is the parent.
    order = torch.cat(all_values).argsort(descending=True, stable=True)[: shape.tokens].sort().values
    renumbered = torch.full((count + 1,), -1, device=first.device)
    renumbered[order] = torch.arange(len(order), device=first.device)
    return Tree(torch.cat(all_tokens)[order], renumbered[torch.cat(all_parents)[order]])
