"""A cache that is shorter than the conversation it remembers.

Everything outside the language model counts in the long sequence, with all visual tokens in it: `generate` cuts
prompts, models derive positions. Everything inside counts what is really there. A cache whose prompt was shortened
therefore answers `get_seq_length` with the long length outside and the real one inside the language model.
"""

from __future__ import annotations

import weakref
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from foveate import compat
from foveate.core.errors import FoveateError
from foveate.kv_cache import MixedLayer


@dataclass(frozen=True)
class Reader:
    """Who shortened a cache: only the same model, reading in the same way, can go on with it.

    Args:
        model: The model; a weak reference, so that caches keep no model alive and copies of them copy none.
        name: What the model reads through, for messages.
        settings: What else must be the same.
    """

    model: weakref.ref[nn.Module]
    name: str
    settings: tuple[Any, ...] = ()

    @property
    def refusal(self) -> str:
        """What is said to everybody else."""
        return (
            f"this cache was filled by a model that read through {self.name}, and does not hold all that was read; "
            "only the same model can go on with it, in the same way: attach that again, or read the conversation anew, "
            "into another cache or into this one after cache.reset()."
        )


class PrunedCacheState:
    """What a shortened cache holds.

    Args:
        columns: (B, P) the column of the long sequence that each cached position stands for, -1 for padding.
        length: Length of the long sequence.
        num_pruned: (B, 1) image tokens that were left out of each row.
        reader: Who leaves them out.
    """

    def __init__(self, columns: Tensor, length: int, num_pruned: Tensor, reader: Reader) -> None:
        self.reader = reader
        self.columns = columns
        self.length = length
        self.num_pruned = num_pruned
        #: (B, P) bool, which of them are of images.
        self.visual = torch.zeros_like(columns, dtype=torch.bool)
        #: (B, p) the types of the first p of them, where the model was given token types.
        self.token_types: Tensor | None = None
        #: What methods that change attention remember of text, by layer: for every row a tensor (text tokens, ...).
        self.memory: dict[int, list[Tensor]] = {}
        #: The neurons that written text uses, by layer: for every row a slice of the MLP.
        self.neurons: dict[int, list[Any]] = {}
        #: Where layers hold less than the first one: from which layer on, and (B, p) which of the first layer's
        #: positions they hold, -1 for padding.
        self.segments: dict[int, Tensor] = {}
        #: For each of them (B, 1), image tokens that its layers lost and the first layer did not.
        self.segment_num_pruned: dict[int, Tensor] = {}
        self.counts_physical = False
        #: Whether the next pass checks tokens that were drafted after the text, several at once.
        self.has_drafts = False

    @classmethod
    def of_full_cache(cls, batch: int, past: int, device: Any, reader: Reader) -> PrunedCacheState:
        """What a cache holds that nothing was left out of."""
        columns = torch.arange(past, device=device).expand(batch, -1)
        return cls(columns, past, torch.zeros(batch, 1, dtype=torch.int64, device=device), reader)

    @property
    def complete(self) -> bool:
        """Whether nothing was left out and nothing is remembered beside keys and values, so that anybody can go on."""
        held = (self.columns, *self.segments.values())
        full = all(part.shape[1] == self.length and not bool((part < 0).any()) for part in held)
        return full and not self.memory and not self.neurons

    @property
    def num_missing(self) -> int:
        """Columns by which the cache is shorter than the long sequence."""
        return self.length - self.columns.shape[1]

    def may_hold_less(self, layer: int) -> bool:
        """Whether a layer may hold less than the first one."""
        return any(first <= layer for first in self.segments)

    def extend(self, columns: Tensor, count: int, num_pruned: Tensor, visual: Tensor) -> None:
        """Append `columns` (B, p) of `count` new ones of the long sequence, from 0 on.

        Args:
            columns: Which of them stay.
            count: How many there were.
            num_pruned: (B, 1) how many image tokens were left out of each row.
            visual: (B, p) which of them are of images.
        """
        self.columns = torch.cat([self.columns, torch.where(columns < 0, -1, columns + self.length)], dim=1)
        self.length += count
        self.num_pruned = self.num_pruned + num_pruned
        self.visual = torch.cat([self.visual, visual], dim=1)

    def select(self, rows: Tensor) -> None:
        """Keep `rows`, in this order."""
        rows = rows.to(self.columns.device)
        self.columns, self.num_pruned, self.visual = self.columns[rows], self.num_pruned[rows], self.visual[rows]
        self.token_types = None if self.token_types is None else self.token_types[rows]
        self.memory = {layer: [memory[row] for row in rows.tolist()] for layer, memory in self.memory.items()}
        self.neurons = {layer: [slices[row] for row in rows.tolist()] for layer, slices in self.neurons.items()}
        self.segments = {layer: columns[rows] for layer, columns in self.segments.items()}
        self.segment_num_pruned = {layer: lost[rows] for layer, lost in self.segment_num_pruned.items()}


class _PrunedCache:
    """Mixed into the class of a cache that was shortened."""

    foveate_state: PrunedCacheState

    def update(self, *args: Any, **kwargs: Any) -> Any:
        return _write(self, "update", *args, **kwargs)

    def update_conv_state(self, *args: Any, **kwargs: Any) -> Any:
        return _write(self, "update_conv_state", *args, **kwargs)

    def update_recurrent_state(self, *args: Any, **kwargs: Any) -> Any:
        return _write(self, "update_recurrent_state", *args, **kwargs)

    def get_seq_length(self, layer_idx: int = 0) -> Any:
        state = self.foveate_state
        # Positions and masks are made for the first layer's sequence, whatever later layers hold of it.
        length = super().get_seq_length(0 if state.may_hold_less(layer_idx) else layer_idx)  # ty: ignore[missing-attribute]
        return length if state.counts_physical else length + state.num_missing

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        length, offset = super().get_mask_sizes(query_length, layer_idx)  # ty: ignore[missing-attribute]
        state = self.foveate_state
        layer: Any = self.layers[layer_idx] if layer_idx < len(self.layers) else None  # ty: ignore[missing-attribute]
        grows = layer is not None and getattr(layer, "max_cache_len", None) is None
        if grows and state.may_hold_less(layer_idx):
            num_cached, window = state.columns.shape[1], getattr(layer, "sliding_window", None)
            offset = 0 if window is None else max(num_cached - window + 1, 0)
            length = num_cached - offset + query_length
        if state.counts_physical:
            return length, offset
        windows: list[bool] = self.is_sliding  # ty: ignore[missing-attribute]
        # What a window holds comes last: in the long sequence it begins later. Layers join a cache as they are used.
        if layer_idx < len(windows) and windows[layer_idx]:
            return length, offset + state.num_missing
        return (length + state.num_missing if grows else length), offset

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens: -n of them; n above 0 is the length of the conversation that is left."""
        state = self.foveate_state
        num_removed = max(state.length - tokens_to_remove, 0) if tokens_to_remove > 0 else -tokens_to_remove
        if num_removed == 0:
            if tokens_to_remove == 0:
                # Windows that recorded their past forget what they need no more.
                super().crop(0)  # ty: ignore[missing-attribute]
            return
        if not self.is_croppable:  # ty: ignore[missing-attribute]
            raise FoveateError("this cache has layers that cannot be cropped; read the conversation anew.")
        tail = state.columns[:, -num_removed:]
        expected = torch.arange(state.length - num_removed, state.length, device=tail.device)
        if num_removed > state.columns.shape[1] or not bool((tail == expected).all()):
            raise FoveateError("a cache of compressed images can only be cropped within the text after the last image.")
        length = state.columns.shape[1]
        text = torch.arange(length - num_removed, length, device=tail.device)
        for columns in state.segments.values():
            if num_removed > columns.shape[1] or not bool((columns[:, -num_removed:] == text).all()):
                raise FoveateError(
                    "a cache of compressed images can only be cropped within the text after the last image."
                )
        super().crop(-num_removed)  # ty: ignore[missing-attribute]
        state.segments = {layer: columns[:, :-num_removed] for layer, columns in state.segments.items()}
        state.columns, state.length = state.columns[:, :-num_removed], state.length - num_removed
        state.visual = state.visual[:, :-num_removed]
        state.token_types = None if state.token_types is None else state.token_types[:, : state.columns.shape[1]]
        state.memory = {
            layer: [row_memory[:-num_removed] for row_memory in memory] for layer, memory in state.memory.items()
        }

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)  # ty: ignore[missing-attribute]
        self.foveate_state.select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)  # ty: ignore[missing-attribute]
        rows = torch.arange(len(self.foveate_state.columns), device=self.foveate_state.columns.device)
        self.foveate_state.select(rows.repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)  # ty: ignore[missing-attribute]
        self.foveate_state.select(torch.as_tensor(indices))

    def reset(self) -> None:
        super().reset()  # ty: ignore[missing-attribute]
        detach_state(self)


def _write(cache: Any, name: str, *args: Any, **kwargs: Any) -> Any:
    """Let a method of a marked cache's own class write to it, inside a pass of who shortened it."""
    state = cache.foveate_state
    if state.counts_physical:
        return getattr(super(_PrunedCache, cache), name)(*args, **kwargs)
    if not is_complete(cache, state):
        raise FoveateError(state.reader.refusal)
    detach_state(cache)
    return getattr(cache, name)(*args, **kwargs)


def state_of(cache: Any) -> PrunedCacheState | None:
    """What a shortened cache holds; None for every other cache."""
    return getattr(cache, "foveate_state", None)


def is_complete(cache: Any, state: PrunedCacheState) -> bool:
    """Whether a cache, though it was marked, is one that every model can go on with."""
    # A pass that failed half-way leaves more, or less, in the layers than was noted.
    return state.complete and int(cache.get_seq_length()) == state.length


def state_for(cache: Any, reader: Reader) -> PrunedCacheState | None:
    """What a cache holds that `reader` goes on with; None where nothing was left out of it.

    Raises:
        FoveateError: somebody else shortened it, or its last pass failed half-way.
    """
    state = state_of(cache)
    if state is None:
        return None
    if state.reader != reader:
        if not is_complete(cache, state):
            raise FoveateError(state.reader.refusal)
        detach_state(cache)
        return None
    if int(cache.get_seq_length()) != state.length:
        raise FoveateError(
            f"this cache holds other tokens than the {state.length} that were read (a pass failed half-way, or its "
            "layers were changed one by one): read the conversation anew, into another cache or after cache.reset()."
        )
    return state


def attach_state(cache: Any, state: PrunedCacheState) -> None:
    """Make a cache know that it is shorter than its conversation.

    Raises:
        FoveateError: it is no cache of `transformers`.
    """
    if not isinstance(cache, Cache):
        raise FoveateError(f"visual tokens can be left out of caches of transformers, not of a {type(cache).__name__}.")
    compat.mix_into(cache, _PrunedCache)
    cache.foveate_state = state


def detach_state(cache: Any) -> None:
    """Make a marked cache an ordinary one again; layers in few bits that hold nothing become ordinary ones too."""
    compat.unmix(cache, _PrunedCache)
    del cache.foveate_state
    for number, layer in enumerate(cache.layers):
        if isinstance(layer, MixedLayer) and not layer.is_initialized:
            cache.layers[number] = DynamicLayer()


@contextmanager
def physical_length(cache: Any) -> Generator[None]:
    """Inside this context a shortened cache counts what is really there, and takes what is written to it."""
    state = state_of(cache)
    if state is None:
        yield
        return
    state.counts_physical = True
    try:
        yield
    finally:
        state.counts_physical = False
        for layer in cache.layers:
            if isinstance(layer, MixedLayer):
                layer.skip_decoding = False  # also where the pass failed half-way
