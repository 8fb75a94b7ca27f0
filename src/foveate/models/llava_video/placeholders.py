"""Placeholders of clips whose number of tokens is known only after they are encoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.core.errors import FoveateError


@dataclass(frozen=True)
class KeptColumns:
    """Columns of a batch of prompts that stay when empty placeholders are removed.

    Args:
        columns: `(B, K)`, columns of every row, ascending, after padding on the left, which is column 0.
        mask: `(B, K)`, 0 for padding.
    """

    columns: Tensor
    mask: Tensor

    def gather(self, values: Tensor) -> Tensor:
        """The kept columns of `(B, L)` or `(B, L, d)`."""
        index = self.columns if values.ndim == 2 else self.columns.unsqueeze(-1)
        return values.take_along_dim(index, dim=1)

    def scatter(self, values: Tensor, length: int) -> Tensor:
        """Put `(B, K, d)` back at their columns of `(B, length, d)`; the others are zero."""
        kept = self.mask.bool()
        rows, _ = kept.nonzero(as_tuple=True)
        placed = values.new_zeros(len(values), length, values.shape[-1])
        return placed.index_put((rows, self.columns[kept]), values[kept])


def kept_placeholders(placeholders: Tensor, greatest: Sequence[int], counts: Sequence[int], what: str) -> Tensor:
    """Places of a batch of prompts that stay, `(B, L)` bool: the last `counts[i]` placeholders of clip i, and all text.

    The last ones stay, so that the token after a clip is predicted from the same column as before.

    Args:
        placeholders: `(B, L)` bool, row by row those of all clips.
        greatest: Placeholders that the prompts have for every clip.
        counts: Tokens of every clip.
        what: "video" or "image".

    Raises:
        FoveateError: The prompts have another number of placeholders.
    """
    total = int(placeholders.sum())
    if total == sum(counts):
        return torch.ones_like(placeholders)
    if total != sum(greatest):
        raise FoveateError(
            f"the prompts have {total} {what} placeholders, and the {what} inputs need {sum(greatest)}: one for each "
            "token, or for each token that there could be."
        )
    kept = [torch.arange(most) >= most - count for most, count in zip(greatest, counts, strict=True)]
    stays = torch.ones_like(placeholders)
    stays[placeholders] = torch.cat(kept).to(stays.device)
    return stays


def kept_columns(stays: Tensor, attention_mask: Tensor | None) -> KeptColumns:
    """Move the columns that stay together, with padding on the left.

    Args:
        stays: `(B, L)` bool.
        attention_mask: `(B, L)`, 0 for padding; None: there is none.

    Raises:
        FoveateError: The mask has another shape.
    """
    if attention_mask is not None:
        if attention_mask.shape != stays.shape:
            raise FoveateError(
                f"clips have fewer tokens than placeholders here, which needs an attention_mask with one value for "
                f"every token, not of shape {tuple(attention_mask.shape)}."
            )
        stays = stays & attention_mask.bool()
    longest = int(stays.sum(-1).max())
    order = stays.to(torch.uint8).argsort(dim=-1, stable=True)[:, stays.shape[1] - longest :]
    mask = stays.gather(1, order)
    return KeptColumns(torch.where(mask, order, 0), mask.to(torch.int64))
