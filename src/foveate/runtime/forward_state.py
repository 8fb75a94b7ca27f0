"""State of one call of the language model, and the sequence of each of its layers.

Columns are those of the sequence that enters the first layer. A *segment* is the layers from one pruning to the next;
its `columns` (B, P) are the column of each position of its sequence, -1 for left padding of rows that lost more.
"""

from __future__ import annotations

import weakref
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from threading import local
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from foveate.core import sequence
from foveate.core.sequence import PlacedSelection
from foveate.core.tokens import Crop, Need
from foveate.families import ImageLayout
from foveate.kv_cache.pruned_cache import PrunedCacheState
from foveate.runtime.attention_masks import same_sample
from foveate.runtime.report import LayerReport

_T = TypeVar("_T")


class CallRegistry(Generic[_T]):
    """Maps the rotary cosines of a call of the language model to the state of that call.

    A checkpointed layer runs again in the backward pass, perhaps in another thread and after the call, but with
    the same rotary cosines.
    """

    def __init__(self) -> None:
        self._known: dict[int, _T] = {}

    def of(self, cosine: Tensor) -> _T | None:
        """State of the call with these cosines; None where it is unknown."""
        return self._known.get(id(cosine))

    def remember(self, cosine: Tensor, call: _T) -> None:
        """Register a state for as long as the cosines exist."""
        if id(cosine) not in self._known:
            self._known[id(cosine)] = call
            weakref.finalize(cosine, self._known.pop, id(cosine), None)


@dataclass(frozen=True)
class ImageSpan:
    """An image in the sequence that enters the first layer.

    Args:
        number: Index of the image in the call.
        row: Index of the sequence in the batch.
        places: (N,) positions of its tokens among the new columns.
        origin: (N,) their indices among its encoder tokens.
        measured: Measured values of the encoder tokens.
        layout: Layout of the encoder tokens.
        sources: (N, K) the new columns whose positions rotate each token, for tokens with several positions (PPE).
    """

    number: int
    row: int
    places: Tensor
    origin: Tensor
    measured: Mapping[Need, Tensor]
    layout: ImageLayout
    sources: Tensor | None = None

    @property
    def separators(self) -> Tensor | None:
        """(N,) bool, True for separator tokens such as newlines; None: there are none."""
        separators = self.layout.separators
        return None if separators is None else separators.to(self.origin.device)[self.origin]

    def crops(self) -> tuple[Crop, ...]:
        """Crops of the remaining tokens: `index` counts among them, -1 for removed ones."""
        place = torch.full((self.layout.count + 1,), -1, dtype=torch.int64, device=self.origin.device)
        place[self.origin] = torch.arange(len(self.origin), device=self.origin.device)
        # -1, for padding, indexes the last entry, which is -1 again.
        return tuple(replace(crop, index=place[crop.index.to(place.device)]) for crop in self.layout.crops)


@dataclass
class LayerSequence:
    """Input sequence of the layers of a segment."""

    columns: Tensor  # (B, P) of the new columns
    removed: Tensor  # (B, P) image tokens removed before each of them, in this pass
    total: Tensor  # (B, 1)
    images: list[ImageSpan]  # at their positions in this sequence
    parent_columns: Tensor | None = None  # (B, P) positions in the previous segment's sequence
    selections: list[PlacedSelection] = field(default_factory=list)  # in the previous segment's sequence
    #: Masks and rotations, made once per segment. Only during the call: `CallRegistry` frees a state with the rotary
    #: cosines, so a state that held them would never be freed.
    layer_arguments: dict[Any, Any] = field(default_factory=dict)

    @property
    def padded(self) -> bool:
        """Whether rows have left padding."""
        return bool((self.columns < 0).any())


@dataclass
class LLMForwardState:
    """State of one call of the language model.

    Args:
        length: New columns L.
        images: Images among them.
        padding_mask: (B, past + L) 0 for padding.
        query_mask: (B, L) 1 for the tokens before answers; None: the last token counts.
        positions: Position ids of the new columns as the language model gets them.
        cache_state: State of the cache, if there is one.
        cache: The cache; None once the call is over.
        input_embeds: (B, L, D) the embeddings of the new columns.
        decisions: What was chosen for this prompt before, by image and layer (what methods that change attention chose
            by -1 - row and layer): without a cache `generate` passes the growing text through the model at every step,
            and what was chosen for the prompt stays chosen.
        sample_ids: (B, L) the sample of each new column, -1 for padding; None: every row is one.
        pair_mask: (B, L, past + L) bool, where attention is neither causal nor causal in each sample.
    """

    length: int
    images: list[ImageSpan]
    padding_mask: Tensor
    query_mask: Tensor | None
    positions: Tensor
    cache_state: PrunedCacheState | None
    cache: Any
    input_embeds: Tensor
    decisions: dict[tuple[int, int], Any]
    sample_ids: Tensor | None = None
    pair_mask: Tensor | None = None
    sequences: dict[int, LayerSequence] = field(default_factory=dict)
    keys: dict[int, tuple[Tensor, Tensor, float]] = field(default_factory=dict)
    activations: dict[int, Tensor] = field(default_factory=dict)
    #: (B, L, past + L) bool by the first layer of a method: columns of images that a new token does not attend to.
    unattended: dict[int, Tensor] = field(default_factory=dict)
    reports: dict[int, list[LayerReport]] = field(default_factory=dict)
    #: Whether there may be a backward pass; gradients are off inside a checkpointed layer.
    needs_grad: bool = field(default_factory=torch.is_grad_enabled)

    def __post_init__(self) -> None:
        self.stretches = sequence.stretches_of(self.positions)
        # As before the call: a layer may run again for its gradient after it.
        self._segments = {} if self.cache_state is None else self.cache_state.segments
        self._num_pruned = {} if self.cache_state is None else self.cache_state.segment_num_pruned

    @property
    def past(self) -> int:
        """Columns before the new ones."""
        return self.padding_mask.shape[1] - self.length

    @cached_property
    def full_sequence(self) -> LayerSequence:
        """The sequence that enters the first layer."""
        columns = torch.arange(self.length, device=self.padding_mask.device).expand(len(self.padding_mask), -1)
        return LayerSequence(columns, torch.zeros_like(columns), columns.new_zeros(len(columns), 1), self.images)

    @property
    def visual(self) -> Tensor:
        """(B, L) bool, True for new columns of images."""
        visual = torch.zeros(len(self.padding_mask), self.length, dtype=torch.bool, device=self.padding_mask.device)
        for image in self.images:
            visual[image.row, image.places] = True
        return visual

    def cached_columns(self, segment: int | None) -> Tensor:
        """(B, n) columns in the cache of a segment's layers, -1 for padding; segment None: the layers before any."""
        if segment is not None and segment in self._segments:
            return self._segments[segment]
        return torch.arange(self.past, device=self.padding_mask.device).expand(len(self.padding_mask), -1)

    def removed_before(self, segment: int) -> Tensor:
        """(B, 1) image tokens that were removed in a segment in earlier calls."""
        nothing = torch.zeros(len(self.padding_mask), 1, dtype=torch.int64, device=self.padding_mask.device)
        return self._num_pruned.get(segment, nothing)

    def same_sample(self, row: int, columns: Tensor, places: Tensor) -> Tensor | None:
        """(P,) bool, the positions of a pruned sequence in the same sample as an image; None: the whole row.

        Args:
            row: Index of the sequence in the batch.
            columns: (B, P) of the new columns.
            places: (N,) positions of the image among them.
        """
        if (self.sample_ids is None and self.pair_mask is None) or not len(places):
            return None
        row_columns = columns[row]
        same = same_sample(self.sample_ids, self.pair_mask, row, row_columns[places])
        return None if same is None else same[row_columns.clamp(min=0)] & (row_columns >= 0)

    def samples(self, row: int, columns: Tensor) -> list[Tensor] | None:
        """Positions (n,) of each sample of a row in a sequence with columns (P,); None: the row is one sample."""
        if self.sample_ids is None:
            return None
        sample_ids = self.sample_ids[row][columns.clamp(min=0)].masked_fill(columns < 0, -1)
        return [(sample_ids == number).nonzero().flatten() for number in sample_ids.unique().tolist() if number >= 0]

    def start_segment(self, segment: int, before: int | None) -> None:
        """Start a segment with the sequence of the previous one."""
        previous = self.full_sequence if before is None else self.sequences[before]
        self.sequences[segment] = LayerSequence(previous.columns, previous.removed, previous.total, previous.images)

    def finish(self) -> Tensor:
        """Record the columns of every segment in the cache; returns the new columns (B, P) of the last layer."""
        if self.cache_state is not None:
            self.cache_state.segments = {
                segment: torch.cat([self.cached_columns(segment), self.with_past(short.columns)], dim=1)
                for segment, short in self.sequences.items()
            }
            self.cache_state.segment_num_pruned = {
                segment: self.removed_before(segment) + short.total for segment, short in self.sequences.items()
            }
        return self.sequences[max(self.sequences)].columns if self.sequences else self.full_sequence.columns

    def with_past(self, columns: Tensor) -> Tensor:
        """New columns, offset by the cached ones."""
        return torch.where(columns < 0, -1, columns + self.past)


class CurrentCalls:
    """The calls of a language model in progress, and the sequence of each layer in them.

    Args:
        text: The language model.
        firsts: The layers before which the sequence is pruned, ascending.
    """

    def __init__(self, text: Any, firsts: tuple[int, ...]) -> None:
        self.text = text
        self.firsts = firsts
        self._local = local()
        self._known: CallRegistry[LLMForwardState] = CallRegistry()

    @contextmanager
    def active(self, state: LLMForwardState) -> Generator[None]:
        """Set the state of this thread's call of the language model while the context is open."""
        previous = self.current
        self._local.state = state
        try:
            yield
        finally:
            self._local.state = previous
            # Keys that have a gradient hold the rotary cosines too. Layers that run again write to no cache.
            state.cache = None
            for layer_sequence in state.sequences.values():
                layer_sequence.layer_arguments.clear()

    @property
    def current(self) -> LLMForwardState | None:
        """State of this thread's call of the language model, if one is in progress."""
        return getattr(self._local, "state", None)

    def state_for_layer(self, kwargs: dict[str, Any]) -> LLMForwardState | None:
        """State of the call that a layer with these arguments belongs to."""
        state = self.current
        if state is None:
            return self._known.of(kwargs["position_embeddings"][0])
        if state.needs_grad:
            self.remember(kwargs, state)
        return state

    def remember(self, kwargs: dict[str, Any], state: LLMForwardState) -> None:
        """Register the state of the call that a layer with these arguments belongs to."""
        self._known.remember(kwargs["position_embeddings"][0], state)

    def segment(self, number: int) -> int | None:
        """First layer of the segment of a layer; None before the first pruning."""
        return max((first for first in self.firsts if first <= number), default=None)

    def sequence_of(self, number: int, state: LLMForwardState) -> LayerSequence:
        """Input sequence of a layer."""
        segment = self.segment(number)
        return state.full_sequence if segment is None else state.sequences[segment]
