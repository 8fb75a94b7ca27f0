"""A KV cache with fewer entries than its conversation has tokens.

Code outside the language model counts in the full sequence, with all visual tokens: `generate` slices
prompts, models derive positions. Code inside counts the entries that exist. A pruned cache
therefore returns the full length from `get_seq_length` outside of the language model and the physical one inside.
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
from foveate.core.in_attention import StepChoice, without_last
from foveate.kv_cache import MixedLayer


@dataclass(frozen=True)
class Reader:
    """Owner of a pruned cache: only the same model with the same settings can continue from it.

    Args:
        model: The model; a weak reference, so that a cache keeps no model alive and its copies copy none.
        name: What prunes the input of the model, for messages.
        settings: Other settings that must be equal.
    """

    model: weakref.ref[nn.Module]
    name: str
    settings: tuple[Any, ...] = ()

    @property
    def refusal(self) -> str:
        """The error for everyone else."""
        return (
            f"this cache was filled under {self.name}, which removed tokens; "
            "only the same model can continue from it, in the same way: attach that again, or read the conversation "
            "again, into another cache or into this one after cache.reset()."
        )


class PrunedCacheState:
    """State of a pruned cache.

    Args:
        columns: (B, P) the column in the full sequence of each cached position, -1 for padding.
        length: Length of the full sequence.
        num_pruned: (B, 1) image tokens removed from each row.
        reader: The owner of the cache.
    """

    def __init__(self, columns: Tensor, length: int, num_pruned: Tensor, reader: Reader) -> None:
        self.reader = reader
        self.columns = columns
        self.length = length
        self.num_pruned = num_pruned
        #: (B, P) bool, True for positions of images.
        self.visual = torch.zeros_like(columns, dtype=torch.bool)
        #: (B, p) token types of the first p positions, if the model gets token types.
        self.token_types: Tensor | None = None
        #: Memory of methods that change attention, by layer: for every row a tensor (text tokens, ...).
        self.memory: dict[int, list[Tensor]] = {}
        #: What parts of the text after the prompt attend to, in their order, by the first layer of a method that
        #: chooses for every token; for every row.
        self.choices: dict[int, list[tuple[StepChoice, ...]]] = {}
        #: The neurons that generated text uses, by layer: for every row a slice of the MLP.
        self.neurons: dict[int, list[Any]] = {}
        #: For each segment of layers that hold less than the first one: its first layer, and (B, p) the first layer's
        #: positions they hold, -1 for padding.
        self.segments: dict[int, Tensor] = {}
        #: For each segment (B, 1) image tokens that were removed in it and not in the first layer.
        self.segment_num_pruned: dict[int, Tensor] = {}
        #: (B, 1) by how much later positions of several axes come earlier, for images whose raster became smaller.
        self.raster_shift: Tensor | None = None
        self.counts_physical = False
        #: Whether the next pass verifies several drafted tokens.
        self.has_drafts = False

    @classmethod
    def of_full_cache(cls, batch: int, past: int, device: Any, reader: Reader) -> PrunedCacheState:
        """State of a cache from which nothing was removed."""
        columns = torch.arange(past, device=device).expand(batch, -1)
        return cls(columns, past, torch.zeros(batch, 1, dtype=torch.int64, device=device), reader)

    @property
    def complete(self) -> bool:
        """Whether nothing was removed and there is no other memory, so that any model can continue."""
        held = (self.columns, *self.segments.values())
        full = all(part.shape[1] == self.length and not bool((part < 0).any()) for part in held)
        return full and not self.memory and not self.neurons and not self.choices

    @property
    def num_missing(self) -> int:
        """Columns of the full sequence that the cache lacks."""
        return self.length - self.columns.shape[1]

    def may_hold_less(self, layer: int) -> bool:
        """Whether a layer may hold less than the first one."""
        return any(first <= layer for first in self.segments)

    def extend(self, columns: Tensor, count: int, num_pruned: Tensor, visual: Tensor) -> None:
        """Append `columns` (B, p) of `count` new ones of the full sequence, counted from 0.

        Args:
            columns: The kept ones.
            count: Number of new columns.
            num_pruned: (B, 1) image tokens removed from each row.
            visual: (B, p) True for those of images.
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
        self.raster_shift = None if self.raster_shift is None else self.raster_shift[rows]
        self.memory = {layer: [memory[row] for row in rows.tolist()] for layer, memory in self.memory.items()}
        self.choices = {layer: [choices[row] for row in rows.tolist()] for layer, choices in self.choices.items()}
        self.neurons = {layer: [slices[row] for row in rows.tolist()] for layer, slices in self.neurons.items()}
        self.segments = {layer: columns[rows] for layer, columns in self.segments.items()}
        self.segment_num_pruned = {layer: lost[rows] for layer, lost in self.segment_num_pruned.items()}


class _PrunedCache:
    """Mixin for the class of a pruned cache."""

    foveate_state: PrunedCacheState

    def update(self, *args: Any, **kwargs: Any) -> Any:
        return _write(self, "update", *args, **kwargs)

    def update_conv_state(self, *args: Any, **kwargs: Any) -> Any:
        return _write(self, "update_conv_state", *args, **kwargs)

    def update_recurrent_state(self, *args: Any, **kwargs: Any) -> Any:
        return _write(self, "update_recurrent_state", *args, **kwargs)

    def get_seq_length(self, layer_idx: int = 0) -> Any:
        state = self.foveate_state
        # Positions and masks are made for the first layer's sequence, also if later layers hold less.
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
        # A window holds the last entries: it begins later in the full sequence. Layers join a cache as they are used.
        if layer_idx < len(windows) and windows[layer_idx]:
            return length, offset + state.num_missing
        return (length + state.num_missing if grows else length), offset

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last -n tokens; a positive n is the length of the remaining conversation."""
        state = self.foveate_state
        num_removed = max(state.length - tokens_to_remove, 0) if tokens_to_remove > 0 else -tokens_to_remove
        if num_removed == 0:
            if tokens_to_remove == 0:
                # Windows that recorded their past drop what they do not need.
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
        state.choices = {
            layer: [without_last(row_choices, num_removed) for row_choices in choices]
            for layer, choices in state.choices.items()
        }
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
    """Call a writing method of the cache's own class, if the owner or any model may write."""
    state = cache.foveate_state
    if state.counts_physical:
        return getattr(super(_PrunedCache, cache), name)(*args, **kwargs)
    if not is_complete(cache, state):
        raise FoveateError(state.reader.refusal)
    detach_state(cache)
    return getattr(cache, name)(*args, **kwargs)


def state_of(cache: Any) -> PrunedCacheState | None:
    """State of a pruned cache; None for every other cache."""
    return getattr(cache, "foveate_state", None)


def is_complete(cache: Any, state: PrunedCacheState) -> bool:
    """Whether any model can continue from a cache with a state."""
    # An interrupted pass leaves more, or less, in the layers than the state says.
    return state.complete and int(cache.get_seq_length()) == state.length


def state_for(cache: Any, reader: Reader) -> PrunedCacheState | None:
    """State of a cache that `reader` continues from; None where nothing was removed from it.

    Raises:
        FoveateError: it has another owner, or its last pass was interrupted.
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
            f"this cache holds other tokens than the {state.length} that were read (a pass was interrupted, or its "
            "layers were changed one by one): read the conversation anew, into another cache or after cache.reset()."
        )
    return state


def attach_state(cache: Any, state: PrunedCacheState) -> None:
    """Attach a state to a cache, which makes it a pruned cache.

    Raises:
        FoveateError: it is not a cache of `transformers`.
    """
    if not isinstance(cache, Cache):
        raise FoveateError(
            f"visual tokens can be pruned from caches of transformers, not from a {type(cache).__name__}."
        )
    compat.mix_into(cache, _PrunedCache)
    cache.foveate_state = state


def detach_state(cache: Any) -> None:
    """Remove the state from a cache; empty quantised layers become ordinary ones again."""
    compat.unmix(cache, _PrunedCache)
    del cache.foveate_state
    for number, layer in enumerate(cache.layers):
        if isinstance(layer, MixedLayer) and not layer.is_initialized:
            cache.layers[number] = DynamicLayer()


@contextmanager
def physical_length(cache: Any) -> Generator[None]:
    """Let a pruned cache count its physical entries and accept writes while the context is open."""
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
                layer.skip_decoding = False  # also if the pass was interrupted
