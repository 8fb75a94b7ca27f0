"""KV cache of a stream: entries that belong to steps, which can be evicted and moved to other positions."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from foveate import compat
from foveate.core.errors import FoveateError, Refusal
from foveate.core.tokens import Selection, VisualTokens
from foveate.kv_cache.nbytes import bytes_of
from foveate.streaming.rotation import rotate, shift_rotations


@dataclass(frozen=True)
class CachedSegment:
    """Entries of one step.

    Args:
        number: Number of the step.
        time: Mean time of its frames, in seconds.
        ids: (n,) token ids of the entries.
        visual: (n,) bool, which of them are visual tokens.
        start: Position at which it begins on the axis that grows with time.
        gap: Positions before it that belong to evicted steps.
        num_read: Visual tokens that the language model read.
        tokens: The visual tokens, where the policy reads them.
    """

    number: int
    time: float
    ids: Tensor
    visual: Tensor
    start: int
    gap: int
    num_read: int
    tokens: VisualTokens | None

    @cached_property
    def num_visual(self) -> int:
        """Visual tokens among the entries."""
        return int(self.visual.sum())


class StreamCache:
    """The prompt of a stream as keys and values: the text before the clip, and the cached steps.

    Args:
        text: The language model.

    Raises:
        FoveateError: a layer of the language model has no keys and values of all tokens.
    """

    def __init__(self, text: Any) -> None:
        self.text = text
        self.layers_cache: Any = DynamicCache(config=text.config)
        layers = self.layers_cache.layers
        if not all(compat.is_plain_dynamic_layer(layer) for layer in layers):
            kinds = ", ".join(sorted({type(layer).__name__ for layer in layers}))
            raise FoveateError(
                Refusal(
                    "needs-full-attention",
                    f"steps of a stream are evicted from layers that attend to everything, and those of "
                    f"{type(text).__name__} are cached as {kinds}",
                )
            )
        self.prefix_ids = torch.zeros(0, dtype=torch.int64)
        self.segments: list[CachedSegment] = []
        #: Where the newest steps were evicted: the position at which the next one would have followed without gap.
        self._evicted_from: int | None = None

    @property
    def ids(self) -> Tensor:
        """(P,) token ids of all entries."""
        return torch.cat([self.prefix_ids, *(segment.ids for segment in self.segments)])

    @property
    def length(self) -> int:
        """Entries of every layer."""
        return len(self.prefix_ids) + sum(len(segment.ids) for segment in self.segments)

    @property
    def nbytes(self) -> int | None:
        """Bytes of keys and values; None where nothing is cached."""
        return bytes_of(self.layers_cache)

    def fork(self) -> StreamCache:
        """A cache with the same entries, to which other text can be added; it shares their memory.

        Layers replace their tensors and write into none, so that these stay as they are.
        """
        other = copy.copy(self)
        other.layers_cache = copy.copy(self.layers_cache)
        other.layers_cache.layers = [copy.copy(layer) for layer in self.layers_cache.layers]
        other.segments = list(self.segments)
        return other

    def add(self, segment: CachedSegment) -> None:
        """Record a step whose entries the language model has just written."""
        gap = 0 if self._evicted_from is None else segment.start - self._evicted_from
        self._evicted_from = None
        self.segments.append(replace(segment, gap=gap))

    def evict(self, keep: Sequence[bool | Tensor]) -> None:
        """Remove steps, or visual tokens of them, from every layer.

        Args:
            keep: For every segment True, False, or (k,) int64 ascending, the visual tokens that stay.

        Raises:
            FoveateError: indices are no selection.
        """
        if all(part is True for part in keep):
            return
        entries = [torch.arange(len(self.prefix_ids))]
        begin, gap = len(self.prefix_ids), 0
        segments: list[CachedSegment] = []
        for place, (segment, part) in enumerate(zip(self.segments, keep, strict=True)):
            count = len(segment.ids)
            if part is False:
                following = self.segments[place + 1].start if place + 1 < len(self.segments) else None
                gap += segment.gap
                if following is None:
                    self._evicted_from = segment.start - gap
                else:
                    gap += following - segment.start - self.segments[place + 1].gap
            else:
                kept = torch.arange(count) if part is True else _kept_entries(segment, part)
                entries.append(begin + kept)
                shorter = segment if part is True else _shortened(segment, part, kept)
                segments.append(replace(shorter, gap=shorter.gap + gap))
                gap = 0
            begin += count
        self.segments = segments
        self._select(torch.cat(entries))

    def _select(self, entries: Tensor) -> None:
        for layer in self.layers_cache.layers:
            places = entries.to(layer.keys.device)
            layer.keys, layer.values = layer.keys.index_select(-2, places), layer.values.index_select(-2, places)

    def close_gaps(self, time_axes: tuple[int, ...], next_start: int) -> int:
        """Move steps to the positions that they would have without the evicted ones.

        Keys are rotated once more, in float32, so that they can be off by a rounding; values have no positions.

        Args:
            time_axes: Factors of a shift for every axis of positions.
            next_start: Position at which the next step would begin.

        Returns:
            By how much later steps move too.
        """
        shifts, shift, segments = [torch.zeros(len(self.prefix_ids), dtype=torch.int64)], 0, []
        for segment in self.segments:
            shift += segment.gap
            shifts.append(torch.full((len(segment.ids),), -shift))
            segments.append(replace(segment, start=segment.start - shift, gap=0))
        if self._evicted_from is not None:
            shift += next_start - self._evicted_from
            self._evicted_from = None
        self.segments = segments
        flat = torch.cat(shifts)
        if bool(flat.any()):
            for layer in self.layers_cache.layers:
                device = layer.keys.device
                axes = torch.stack([flat * factor for factor in time_axes]).to(device)
                cos, sin = shift_rotations(self.text, axes if len(time_axes) > 1 else axes[0])
                layer.keys = rotate(layer.keys, cos.to(device), sin.to(device))
        return shift

    @property
    def has_gaps(self) -> bool:
        """Whether positions belong to evicted steps."""
        return self._evicted_from is not None or any(segment.gap for segment in self.segments)


def _kept_entries(segment: CachedSegment, part: Tensor) -> Tensor:
    """(n,) the entries of a segment whose visual tokens are cut to `part`; its text stays."""
    visual = segment.visual.nonzero().flatten()
    Selection(part).check(segment.num_visual, "the policy of the cache")
    kept = ~segment.visual
    kept[visual[part.cpu()]] = True
    return kept.nonzero().flatten()


def _shortened(segment: CachedSegment, part: Tensor, kept: Tensor) -> CachedSegment:
    tokens = None if segment.tokens is None else segment.tokens.take(Selection(part.to(segment.tokens.device)))
    return replace(segment, ids=segment.ids[kept], visual=segment.visual[kept], tokens=tokens)
