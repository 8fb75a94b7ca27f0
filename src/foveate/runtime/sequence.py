"""The sequence that the language model reads, made shorter: pure index work on tensors.

A batch of sequences of L new positions (columns) loses some columns a row. Rows that lose fewer than others stay
longer; the others are padded on the left, where padding of prompts stands too. `columns` (B, P) says which column of
the long sequence each position of the short one is, -1 for padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveate.tokens import Selection


@dataclass(frozen=True)
class Chosen:
    """The selection of one image at its place in a batch.

    Args:
        row: Sequence of the batch.
        columns: (N,) ascending, where the image's tokens stand.
        selection: What stays of them.
    """

    row: int
    columns: Tensor
    selection: Selection

    @property
    def kept(self) -> Tensor:
        """(k,) the columns that stay."""
        return self.columns[self.selection.indices]

    @property
    def changes_nothing(self) -> bool:
        """Whether all tokens stay as they are."""
        return len(self.columns) == len(self.selection) and self.selection.features is None


@dataclass(frozen=True)
class Shorter:
    """A short sequence in terms of the long one.

    Args:
        columns: (B, P) the column of the long sequence at every position, -1 for padding.
        gone: (B, P) how many image tokens were left out before each position.
        total: (B, 1) how many were left out of the row.
    """

    columns: Tensor
    gone: Tensor
    total: Tensor


def kept_columns(batch: int, length: int, chosen: Sequence[Chosen], seen: Tensor | None, device: Any) -> Shorter:
    """The short sequence: everything but the image tokens that go.

    Args:
        batch: Rows B.
        length: Columns L of the long sequence.
        chosen: What stays of every image.
        seen: (B, L) 0 for padding of the prompts; leading columns that are padding in all rows go too.
        device: Where the result shall be.
    """
    if not chosen:  # while an answer is written, at every token
        columns = torch.arange(length, device=device).expand(batch, -1)
        return Shorter(columns, torch.zeros_like(columns), columns.new_zeros(batch, 1))
    stays = torch.ones(batch, length, dtype=torch.bool, device=device)
    for image in chosen:
        stays[image.row, image.columns] = False
    for image in chosen:
        stays[image.row, image.kept] = True
    gone = (~stays).cumsum(dim=1)
    counts = stays.sum(dim=1)
    longest = int(counts.max())
    # A stable sort puts what goes first and keeps the order of the rest.
    order = stays.to(torch.uint8).argsort(dim=1, stable=True)[:, length - longest :]
    padding = torch.arange(longest, device=device) < (longest - counts)[:, None]
    if seen is not None and bool(padding.any()):
        empty = padding | (seen.gather(1, order) == 0)
        leading = int(empty.all(dim=0).to(torch.uint8).cumprod(dim=0).sum())
        order, padding = order[:, leading:], padding[:, leading:]
    return Shorter(order.masked_fill(padding, -1), gone.gather(1, order), gone[:, -1:])


def gather(values: Tensor, columns: Tensor) -> Tensor:
    """Rows (B, P, ...) of values (B, L, ...) at `columns`; padding gets those of column 0."""
    index = columns.clamp(min=0)
    if len(values) != len(columns):
        values = values.expand(len(columns), *values.shape[1:])
    return values[torch.arange(len(columns), device=columns.device)[:, None], index]


def gather_mask(mask: Tensor, columns: Tensor) -> Tensor:
    """A 2-D mask (B, L) at `columns`; padding is 0."""
    return gather(mask, columns).masked_fill(columns < 0, 0)


def gather_positions(positions: Tensor, columns: Tensor, gone: Tensor | None = None) -> Tensor:
    """Position ids (B, L), (1, L) or (axes, B, L) at `columns`.

    Args:
        positions: Of the long sequence.
        columns: (B, P).
        gone: (B, P) to close the gaps that left-out tokens leave, for positions of one axis.
    """
    batch = len(columns)
    if positions.ndim == 3:
        spread = positions.expand(-1, batch, -1)
        return spread.gather(2, columns.clamp(min=0).expand(len(spread), -1, -1))
    short = positions.expand(batch, -1).gather(1, columns.clamp(min=0))
    if gone is not None:
        short = (short - gone).clamp(min=0)
    return short.masked_fill(columns < 0, 0)


def key_mask(mask: Any, length: int) -> Tensor | None:
    """What of `length` columns may be seen at all, (B, length), from a mask of any form; None: everything.

    Args:
        mask: None, (B, L), (B, 1, Q, K) bool or added, or a dict of these by kind of layer.
        length: Columns of the long sequence, cached ones included.
    """
    if isinstance(mask, Mapping):
        mask = mask.get("full_attention", next(iter(mask.values()), None))
    if mask is None:
        return None
    if mask.ndim == 2:
        return mask[:, -length:]
    last = mask[:, 0, -1, :length]  # the last query sees all that is no padding
    return last.long() if last.dtype == torch.bool else (last == 0).long()


def shorten_features(features: Tensor, columns: Tensor, chosen: Sequence[Chosen]) -> Tensor:
    """Embeddings (B, L, D) of the short sequence (B, P, D), merged tokens in place of those that stand for them."""
    if not chosen:
        return features
    if any(image.selection.features is not None for image in chosen):
        features = features.clone()
        for image in chosen:
            own = image.selection
            if own.features is None:
                continue
            value = own.features
            if torch.is_grad_enabled() and own.remade is not None:
                value = own.remade(features[image.row, image.columns])
            elif torch.is_grad_enabled() and features.requires_grad and own.assignment is not None:
                # The value is the method's; the gradient reaches the tokens by the shares that they have in it.
                shares = own.apply(features[image.row, image.columns])
                value = value + (shares - shares.detach())
            features[image.row, image.kept] = value.to(features)
    return gather(features, columns)


def shorten_planes(
    planes: Sequence[Tensor], visual: Tensor, columns: Tensor, chosen: Sequence[Chosen]
) -> tuple[list[Tensor], Tensor]:
    """DeepStack planes, which are added to visual tokens after the first layers.

    Args:
        planes: (visual tokens, D) each, in the order of the long sequence.
        visual: (B, L) bool, where they stand.
        columns: (B, P).
        chosen: What stays; merged tokens get merged planes.

    Returns:
        The planes of the short sequence, and where they stand (B, P).
    """
    short_visual = gather(visual, columns) & (columns >= 0)
    result = []
    for plane in planes:
        long = plane.new_zeros(*visual.shape, plane.shape[-1])
        long[visual] = plane
        for image in chosen:
            if image.selection.assignment is not None:
                long[image.row, image.kept] = image.selection.apply(long[image.row, image.columns])
        result.append(gather(long, columns)[short_visual])
    return result, short_visual


def before_answers(labels: Tensor) -> Tensor:
    """(B, L) 1 for the last token before each stretch of labels, which is where an answer is asked for."""
    learned = labels != -100
    asking = torch.zeros_like(labels)
    asking[:, :-1] = (learned[:, 1:] & ~learned[:, :-1]).to(labels)
    return asking


def shorten_labels(labels: Tensor, columns: Tensor) -> Tensor:
    """Labels (B, L) at `columns`; -100 for padding, and for what comes right after it, which nothing predicts."""
    unpredicted = columns < 0
    unpredicted[:, 1:] |= columns[:, :-1] < 0
    return gather(labels, columns).masked_fill(unpredicted, -100)
