"""A cache that is shorter than the conversation it remembers.

Everything outside the language model counts in the long sequence, with all visual tokens in it: `generate` cuts
prompts, models derive positions. Everything inside counts what is really there. A cache whose prompt was shortened
therefore answers `get_seq_length` with the long length outside and the real one inside the language model.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from foveate.errors import FoveateError
from foveate.runtime import compat


class Kept:
    """What a shortened cache holds.

    Args:
        columns: (B, P) the column of the long sequence that each cached position stands for, -1 for padding.
        length: Length of the long sequence.
        gone: (B, 1) image tokens that were left out of each row.
    """

    def __init__(self, columns: Tensor, length: int, gone: Tensor) -> None:
        self.columns = columns
        self.length = length
        self.gone = gone
        #: (B, P) bool, which of them are of images.
        self.visual = torch.zeros_like(columns, dtype=torch.bool)
        #: What methods that change attention remember of text, by layer: for every row a tensor (text tokens, ...).
        self.memory: dict[int, list[Tensor]] = {}
        #: The neurons that written text uses, by layer: for every row a slice of the MLP.
        self.neurons: dict[int, list[Any]] = {}
        #: Where layers hold less than the first one: from which layer on, and (B, p) which of the first layer's
        #: positions they hold, -1 for padding.
        self.segments: dict[int, Tensor] = {}
        #: For each of them (B, 1), image tokens that its layers lost and the first layer did not.
        self.lost: dict[int, Tensor] = {}
        self.inside = False

    @property
    def removed(self) -> int:
        """Columns by which the cache is shorter than the long sequence."""
        return self.length - self.columns.shape[1]

    def shortened(self, layer: int) -> bool:
        """Whether a layer may hold less than the first one."""
        return any(first <= layer for first in self.segments)

    def extend(self, columns: Tensor, count: int, gone: Tensor, visual: Tensor) -> None:
        """Append `columns` (B, p) of `count` new ones of the long sequence, from 0 on.

        Args:
            columns: Which of them stay.
            count: How many there were.
            gone: (B, 1) how many image tokens were left out of each row.
            visual: (B, p) which of them are of images.
        """
        self.columns = torch.cat([self.columns, torch.where(columns < 0, -1, columns + self.length)], dim=1)
        self.length += count
        self.gone = self.gone + gone
        self.visual = torch.cat([self.visual, visual], dim=1)

    def select(self, rows: Tensor) -> None:
        """Keep `rows`, in this order."""
        rows = rows.to(self.columns.device)
        self.columns, self.gone, self.visual = self.columns[rows], self.gone[rows], self.visual[rows]
        self.memory = {layer: [memory[row] for row in rows.tolist()] for layer, memory in self.memory.items()}
        self.neurons = {layer: [slices[row] for row in rows.tolist()] for layer, slices in self.neurons.items()}
        self.segments = {layer: columns[rows] for layer, columns in self.segments.items()}
        self.lost = {layer: lost[rows] for layer, lost in self.lost.items()}


class _Shortened:
    """Mixed into the class of a cache that was shortened."""

    foveate_kept: Kept

    def get_seq_length(self, layer_idx: int = 0) -> Any:
        kept = self.foveate_kept
        # Positions and masks are made for the first layer's sequence, whatever later layers hold of it.
        length = super().get_seq_length(0 if kept.shortened(layer_idx) else layer_idx)  # ty: ignore[missing-attribute]
        return length if kept.inside else length + kept.removed

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        length, offset = super().get_mask_sizes(query_length, layer_idx)  # ty: ignore[missing-attribute]
        kept = self.foveate_kept
        own: Any = self.layers[layer_idx] if layer_idx < len(self.layers) else None  # ty: ignore[missing-attribute]
        if own is not None and kept.shortened(layer_idx) and getattr(own, "max_cache_len", None) is None:
            held, window = kept.columns.shape[1], getattr(own, "sliding_window", None)
            offset = 0 if window is None else max(held - window + 1, 0)
            length = held - offset + query_length
        windows: list[bool] = self.is_sliding  # ty: ignore[missing-attribute]
        # What a window holds comes last: in the long sequence it begins later. Layers join a cache as they are used.
        sliding = layer_idx < len(windows) and windows[layer_idx]
        return length, offset + kept.removed if sliding and not kept.inside else offset

    def crop(self, max_length: int) -> None:
        kept = self.foveate_kept
        cut = kept.length - max_length if max_length >= 0 else -max_length
        if cut <= 0:
            return
        tail = kept.columns[:, -cut:]
        expected = torch.arange(kept.length - cut, kept.length, device=tail.device)
        if cut > kept.columns.shape[1] or not bool((tail == expected).all()):
            raise FoveateError("a cache of compressed images can only be cropped within the text after the last image.")
        last = kept.columns.shape[1]
        text = torch.arange(last - cut, last, device=tail.device)
        for columns in kept.segments.values():
            if cut > columns.shape[1] or not bool((columns[:, -cut:] == text).all()):
                raise FoveateError(
                    "a cache of compressed images can only be cropped within the text after the last image."
                )
        super().crop(-cut)  # ty: ignore[missing-attribute]
        kept.segments = {layer: columns[:, :-cut] for layer, columns in kept.segments.items()}
        kept.columns, kept.length = kept.columns[:, :-cut], kept.length - cut
        kept.visual = kept.visual[:, :-cut]
        kept.memory = {layer: [own[:-cut] for own in memory] for layer, memory in kept.memory.items()}

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)  # ty: ignore[missing-attribute]
        self.foveate_kept.select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)  # ty: ignore[missing-attribute]
        rows = torch.arange(len(self.foveate_kept.columns), device=self.foveate_kept.columns.device)
        self.foveate_kept.select(rows.repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)  # ty: ignore[missing-attribute]
        self.foveate_kept.select(torch.as_tensor(indices))

    def reset(self) -> None:
        super().reset()  # ty: ignore[missing-attribute]
        compat.unmix(self, _Shortened)  # ty: ignore[invalid-argument-type]
        del self.foveate_kept


def kept_of(cache: Any) -> Kept | None:
    """What a shortened cache holds; None for every other cache."""
    return getattr(cache, "foveate_kept", None)


def mark(cache: Any, kept: Kept) -> None:
    """Make a cache know that it is shorter than its conversation.

    Raises:
        FoveateError: it is no cache of `transformers`.
    """
    if not isinstance(cache, Cache):
        raise FoveateError(f"visual tokens can be left out of caches of transformers, not of a {type(cache).__name__}.")
    compat.mix_into(cache, _Shortened)
    cache.foveate_kept = kept


@contextmanager
def inside(cache: Any) -> Generator[None]:
    """Inside this context a shortened cache counts what is really there."""
    kept = kept_of(cache)
    if kept is None:
        yield
        return
    kept.inside = True
    try:
        yield
    finally:
        kept.inside = False
