"""Shortening of the sequence that the language model reads: pure index work on tensors.

A batch of sequences of L new positions (columns) loses some columns a row. Rows that lose fewer than others stay
longer; the others are padded on the left, as prompts are. `columns` (B, P) is the column of the long sequence at each
position of the short one, -1 for padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.tokens import Selection


@dataclass(frozen=True)
class PlacedSelection:
    """The selection of one image and its columns in a batch.

    Args:
        row: Sequence of the batch.
        columns: (N,) ascending, of the image's tokens.
        selection: Of these tokens.
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
class PrunedSequence:
    """A short sequence in terms of the long one.

    Args:
        columns: (B, P) the column of the long sequence at every position, -1 for padding.
        removed: (B, P) how many image tokens were dropped before each position, in its stretch of positions.
        total: (B, 1) how many were dropped in the row.
    """

    columns: Tensor
    removed: Tensor
    total: Tensor


def kept_columns(
    batch: int,
    length: int,
    chosen: Sequence[PlacedSelection],
    mask: Tensor | None,
    device: Any,
    stretches: Tensor | None = None,
) -> PrunedSequence:
    """The short sequence: everything but the image tokens that go.

    Args:
        batch: Rows B.
        length: Columns L of the long sequence.
        chosen: What stays of every image.
        mask: (B, L) 0 for padding of the prompts; leading columns that are padding in all rows go too.
        device: Where the result shall be.
        stretches: (B, L) from `stretches_of`; None: every row is one.
    """
    if not chosen:  # while an answer is written, at every token
        columns = torch.arange(length, device=device).expand(batch, -1)
        return PrunedSequence(columns, torch.zeros_like(columns), columns.new_zeros(batch, 1))
    kept = torch.ones(batch, length, dtype=torch.bool, device=device)
    for image in chosen:
        kept[image.row, image.columns] = False
    for image in chosen:
        kept[image.row, image.kept] = True
    removed = total = (~kept).cumsum(dim=1)
    if stretches is not None:
        place = torch.arange(length, device=device).expand(batch, -1)
        first = F.pad(stretches[:, 1:] != stretches[:, :-1], (1, 0), value=True)
        start = torch.where(first, place, 0).cummax(dim=1).values
        before = removed - (~kept).long()
        removed = removed - before.gather(1, start)
    counts = kept.sum(dim=1)
    longest = int(counts.max())
    # A stable sort moves dropped columns to the front and keeps the order of the others.
    order = kept.to(torch.uint8).argsort(dim=1, stable=True)[:, length - longest :]
    padding = torch.arange(longest, device=device) < (longest - counts)[:, None]
    if mask is not None and bool(padding.any()):
        empty = padding | (mask.gather(1, order) == 0)
        leading = int(empty.all(dim=0).to(torch.uint8).cumprod(dim=0).sum())
        order, padding = order[:, leading:], padding[:, leading:]
    return PrunedSequence(order.masked_fill(padding, -1), removed.gather(1, order), total[:, -1:])


def stretches_of(positions: Tensor | None) -> Tensor | None:
    """(B, L) a number for each stretch of columns whose positions (B, L) go up; None where there is one a row.

    Positions begin anew where another sample begins. Tokens dropped from one sample move no token of the next.
    """
    if positions is None or positions.ndim != 2:
        return None
    begins = positions[:, 1:] <= positions[:, :-1]
    return F.pad(begins.cumsum(dim=1), (1, 0)) if bool(begins.any()) else None


def gather(values: Tensor, columns: Tensor) -> Tensor:
    """Rows (B, P, ...) of values (B, L, ...) at `columns`; padding gets those of column 0."""
    index = columns.clamp(min=0)
    if len(values) != len(columns):
        values = values.expand(len(columns), *values.shape[1:])
    return values[torch.arange(len(columns), device=columns.device)[:, None], index]


def gather_mask(mask: Tensor, columns: Tensor) -> Tensor:
    """A 2-D mask (B, L) at `columns`; padding is 0."""
    return gather(mask, columns).masked_fill(columns < 0, 0)


def gather_positions(positions: Tensor, columns: Tensor, removed: Tensor | None = None) -> Tensor:
    """Position ids (B, L), (1, L) or (axes, B, L) at `columns`.

    Args:
        positions: Of the long sequence.
        columns: (B, P).
        removed: (B, P) to close the gaps that left-out tokens leave, for positions of one axis.
    """
    batch = len(columns)
    if positions.ndim == 3:
        expanded = positions.expand(-1, batch, -1)
        return expanded.gather(2, columns.clamp(min=0).expand(len(expanded), -1, -1))
    short = positions.expand(batch, -1).gather(1, columns.clamp(min=0))
    if removed is not None:
        short = (short - removed).clamp(min=0)
    return short.masked_fill(columns < 0, 0)


def key_mask(mask: Any, length: int) -> Tensor | None:
    """Padding mask (B, length) of `length` columns from a mask of any form; None: no padding.

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
    last = mask[:, 0, -1, :length]  # the last query attends to all that is no padding
    return last.long() if last.dtype == torch.bool else (last == 0).long()


def shorten_features(features: Tensor, columns: Tensor, chosen: Sequence[PlacedSelection]) -> Tensor:
    """Embeddings (B, L, D) of the short sequence (B, P, D), with merged tokens."""
    if not chosen:
        return features
    if any(image.selection.features is not None for image in chosen):
        features = features.clone()
        for image in chosen:
            selection = image.selection
            if selection.features is None:
                continue
            value = selection.features
            if torch.is_grad_enabled() and selection.remade is not None:
                value = selection.remade(features[image.row, image.columns])
            elif torch.is_grad_enabled() and features.requires_grad and selection.assignment is not None:
                # The value is the method's; the gradient reaches the tokens by the shares that they have in it.
                shares = selection.apply(features[image.row, image.columns])
                value = value + (shares - shares.detach())
            features[image.row, image.kept] = value.to(features)
    return gather(features, columns)


def shorten_planes(
    planes: Sequence[Tensor], visual: Tensor, columns: Tensor, chosen: Sequence[PlacedSelection]
) -> tuple[list[Tensor], Tensor]:
    """DeepStack features pruned to match the kept visual tokens; they are added to these after the first layers.

    Args:
        planes: (visual tokens, D) each, in the order of the long sequence.
        visual: (B, L) bool, the columns of visual tokens.
        columns: (B, P).
        chosen: Selections; merged tokens get merged features.

    Returns:
        The features of the short sequence, and the mask (B, P) of its visual tokens.
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


def within_samples(asking: Tensor, blocks: Tensor) -> Tensor:
    """`before_answers` without the tokens whose answer would be the beginning of another sample (B, L)."""
    last = F.pad(blocks[:, 1:] != blocks[:, :-1], (0, 1), value=False)
    return asking.masked_fill(last.to(asking.device), 0)


def shorten_labels(labels: Tensor, columns: Tensor, blocks: Tensor | None = None) -> Tensor:
    """Labels (B, L) at `columns`; -100 for padding, and for what nothing predicts any more.

    That is what comes right after padding, and what follows the last remaining token of another sample of the row.
    """
    unpredicted = columns < 0
    unpredicted[:, 1:] |= columns[:, :-1] < 0
    if blocks is not None:
        samples = gather(blocks, columns)
        unpredicted[:, 1:] |= (samples[:, 1:] != samples[:, :-1]) & (columns[:, 1:] != columns[:, :-1] + 1)
    return gather(labels, columns).masked_fill(unpredicted, -100)


def shorten_shifted(labels: Tensor, columns: Tensor, blocks: Tensor | None = None) -> Tensor:
    """As `shorten_labels`, for shifted labels (B, L): each one column before its token."""
    unshifted = F.pad(labels[:, :-1], (1, 0), value=-100)
    short = shorten_labels(unshifted, columns, blocks)
    # What the last column predicts is no token of the sequence.
    last = torch.where(columns[:, -1] == labels.shape[1] - 1, labels[:, -1], -100)
    return torch.cat([short[:, 1:], last[:, None]], dim=1)


def labels_that_count(labels: Tensor, columns: Tensor, blocks: Tensor | None = None) -> Tensor:
    """Labels (B, L) of the long sequence, -100 where `shorten_labels` keeps none."""
    short = shorten_labels(labels, columns, blocks)
    short[:, 0] = -100  # nothing predicts it
    result = torch.full_like(labels, -100)
    row, place = (columns >= 0).nonzero(as_tuple=True)
    result[row, columns[row, place]] = short[row, place]
    return result


def shifted_that_count(labels: Tensor, columns: Tensor, blocks: Tensor | None = None) -> Tensor:
    """As `labels_that_count`, for shifted labels."""
    counted = labels_that_count(F.pad(labels[:, :-1], (1, 0), value=-100), columns, blocks)
    return torch.cat([counted[:, 1:], labels[:, -1:]], dim=1)


def last_kept(columns: Tensor, length: int, blocks: Tensor | None = None) -> Tensor:
    """(B, L) the position of the short sequence that represents each column of the long one, -1 where none does.

    It is the column itself where it stays, else the last one before it that stays, of the same sample. So each column
    is followed by what follows it in the short sequence: what predicts a token that stays is, in both, the same.
    """
    targets = torch.arange(length, device=columns.device).expand(len(columns), -1).contiguous()
    place = torch.searchsorted(columns.contiguous(), targets, right=True) - 1
    kept = gather_mask(columns + 1, place) - 1  # -1 where nothing is before
    if blocks is not None:
        kept = kept.masked_fill(gather(blocks, kept) != blocks, -1)
    return place.masked_fill(kept < 0, -1)


def spread(values: Tensor, positions: Tensor) -> Tensor:
    """Values (B, P, D) of the short sequence at every column of the long one (B, L, D); zeros where there is none.

    Args:
        values: Of the short sequence.
        positions: (B, L) from `last_kept`.
    """
    return gather(values, positions) * (positions >= 0)[..., None].to(values.dtype)


def gather_pairs(mask: Tensor, columns: Tensor, keys: Tensor) -> Tensor:
    """A mask (B or 1, H or 1, Q, K), bool or added, for the queries at `columns` (B, P) and the keys at `keys` (B, N).

    No query attends to padding, and padding attends to everything: a row without any key would be NaN.
    """
    expanded = mask.expand(len(columns), -1, -1, -1)
    shape = expanded.shape
    rows = expanded.gather(2, columns.clamp(min=0)[:, None, :, None].expand(-1, shape[1], -1, shape[3]))
    index = keys.clamp(min=0)[:, None, None].expand(-1, *rows.shape[1:3], -1)
    boolean = mask.dtype == torch.bool
    least = False if boolean else torch.finfo(mask.dtype).min
    short = rows.gather(3, index).masked_fill((keys < 0)[:, None, None], least)
    return short.masked_fill((columns < 0)[:, None, :, None], True if boolean else 0.0)
