"""One call of the language model, and what its layers hold of the sequence.

Columns are those of the sequence that enters the first layer. `columns` (B, P) of a segment says which of them each
position of the shorter sequence is, -1 for padding on the left of rows that lost more than others.
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
    """What calls of the language model are about, by the rotary positions that their layers are given.

    A checkpointed layer runs again in the backward pass, perhaps in another thread and when the call is over, but with
    the same rotary positions.
    """

    def __init__(self) -> None:
        self._known: dict[int, _T] = {}

    def of(self, cosine: Tensor) -> _T | None:
        """What the call with these positions is about; None where it is not known."""
        return self._known.get(id(cosine))

    def remember(self, cosine: Tensor, call: _T) -> None:
        """Note it, as long as the positions exist."""
        if id(cosine) not in self._known:
            self._known[id(cosine)] = call
            weakref.finalize(cosine, self._known.pop, id(cosine), None)


@dataclass(frozen=True)
class ImageSpan:
    """An image in the sequence that enters the first layer.

    Args:
        number: Which of the images of the call.
        row: Sequence of the batch.
        places: (N,) where its tokens stand among the new columns.
        origin: (N,) their places among the tokens that the encoder made of it.
        measured: What probes found of the encoder, a value for each of those.
        layout: The tokens that the encoder made, as a picture.
        sources: (N, K) the new columns whose positions each token carries, for tokens that carry several (PPE).
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
        """(N,) bool, which of its tokens are newlines and the like; None: none is."""
        separators = self.layout.separators
        return None if separators is None else separators.to(self.origin.device)[self.origin]

    def crops(self) -> tuple[Crop, ...]:
        """Where its tokens come from: `index` are places among those that are left, -1 for the others."""
        place = torch.full((self.layout.count + 1,), -1, dtype=torch.int64, device=self.origin.device)
        place[self.origin] = torch.arange(len(self.origin), device=self.origin.device)
        # -1, of padding, finds the last one, -1 again.
        return tuple(replace(crop, index=place[crop.index.to(place.device)]) for crop in self.layout.crops)


@dataclass
class LayerSequence:
    """What the layers of a segment are called with."""

    columns: Tensor  # (B, P) of the new columns
    removed: Tensor  # (B, P) image tokens left out before each of them, in this pass
    total: Tensor  # (B, 1)
    images: list[ImageSpan]  # at their places in the short sequence
    parent_columns: Tensor | None = None  # (B, P) of the sequence of the segment before
    selections: list[PlacedSelection] = field(default_factory=list)  # in the sequence of the segment before
    layer_arguments: dict[Any, Any] = field(default_factory=dict)  # masks and rotations, made once for all layers

    @property
    def padded(self) -> bool:
        """Whether rows begin with padding."""
        return bool((self.columns < 0).any())


@dataclass
class LLMForwardState:
    """One call of the language model.

    Args:
        length: New columns L.
        images: Images among them.
        padding_mask: (B, past + L) 0 for padding.
        query_mask: (B, L) 1 for the tokens before answers; None: the last one asks.
        positions: Position ids of the new columns as the language model is given them.
        cache_state: What the cache holds, where there is one.
        cache: The cache.
        input_embeds: (B, L, D) the embeddings of the new columns.
        decisions: What was chosen for this prompt before, by image and layer (what methods that change attention chose by
            -1 - row and layer): without a cache `generate` passes the growing text through the model at every step, and
            what was chosen for the prompt stays chosen.
        sample_ids: (B, L) the sample that each new column is of, -1 for padding; None: every row is one.
        pair_mask: (B, L, past + L) bool, who sees whom where that is neither causal nor causal in each sample.
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
    reports: dict[int, list[LayerReport]] = field(default_factory=dict)
    #: Whether there may be a backward pass. Inside a layer that is checkpointed nothing tells of it.
    needs_grad: bool = field(default_factory=torch.is_grad_enabled)

    def __post_init__(self) -> None:
        self.stretches = sequence.stretches_of(self.positions)
        # As they were: a layer may run again for its gradient, when the pass is over.
        self._segments = {} if self.cache_state is None else self.cache_state.segments

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
        """(B, L) bool, which new columns are of images."""
        visual = torch.zeros(len(self.padding_mask), self.length, dtype=torch.bool, device=self.padding_mask.device)
        for image in self.images:
            visual[image.row, image.places] = True
        return visual

    def cached_columns(self, segment: int | None) -> Tensor:
        """(B, n) the columns that the cache of a segment's layers holds, -1 for padding; None: before any segment."""
        if segment is not None and segment in self._segments:
            return self._segments[segment]
        return torch.arange(self.past, device=self.padding_mask.device).expand(len(self.padding_mask), -1)

    def removed_before(self, segment: int) -> Tensor:
        """(B, 1) image tokens that a segment's layers lost in earlier calls."""
        nothing = torch.zeros(len(self.padding_mask), 1, dtype=torch.int64, device=self.padding_mask.device)
        return nothing if self.cache_state is None else self.cache_state.segment_num_pruned.get(segment, nothing)

    def same_sample(self, row: int, columns: Tensor, places: Tensor) -> Tensor | None:
        """(P,) bool, what is of the sample of an image, in a shorter sequence; None: all of the row.

        Args:
            row: Sequence of the batch.
            columns: (B, P) of the new columns.
            places: (N,) where the image stands among them.
        """
        if (self.sample_ids is None and self.pair_mask is None) or not len(places):
            return None
        row_columns = columns[row]
        same = same_sample(self.sample_ids, self.pair_mask, row, row_columns[places])
        return None if same is None else same[row_columns.clamp(min=0)] & (row_columns >= 0)

    def samples(self, row: int, columns: Tensor) -> list[Tensor] | None:
        """For each sample of a row its places (n,) among the columns (P,) of a shorter sequence; None: it is one."""
        if self.sample_ids is None:
            return None
        sample_ids = self.sample_ids[row][columns.clamp(min=0)].masked_fill(columns < 0, -1)
        return [(sample_ids == number).nonzero().flatten() for number in sample_ids.unique().tolist() if number >= 0]

    def start_segment(self, segment: int, before: int | None) -> None:
        """What a segment's layers get where no image is left out before them."""
        previous = self.full_sequence if before is None else self.sequences[before]
        self.sequences[segment] = LayerSequence(previous.columns, previous.removed, previous.total, previous.images)

    def finish(self) -> Tensor:
        """Note what every segment of the cache holds now; returns the new columns (B, P) that the last layer saw."""
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
        """New columns counted with those before them."""
        return torch.where(columns < 0, -1, columns + self.past)


class CurrentCalls:
    """The calls of a language model that are under way, and the sequence that each of its layers has in them.

    Args:
        text: The language model.
        firsts: The layers before which the sequence gets shorter, ascending.
    """

    def __init__(self, text: Any, firsts: tuple[int, ...]) -> None:
        self.text = text
        self.firsts = firsts
        self._local = local()
        self._known: CallRegistry[LLMForwardState] = CallRegistry()

    @contextmanager
    def active(self, state: LLMForwardState) -> Generator[None]:
        """Inside this context this thread's call of the language model is `found`."""
        previous = self.current
        self._local.state = state
        try:
            yield
        finally:
            self._local.state = previous

    @property
    def current(self) -> LLMForwardState | None:
        """This thread's call of the language model, where one is under way."""
        return getattr(self._local, "state", None)

    def state_for_layer(self, kwargs: dict[str, Any]) -> LLMForwardState | None:
        """The call of the language model that a layer with these arguments is a part of."""
        cosine = kwargs["position_embeddings"][0]
        state = self.current
        if state is None:
            return self._known.of(cosine)
        if state.needs_grad:
            self._known.remember(cosine, state)
        return state

    def segment(self, number: int) -> int | None:
        """The first layer of the segment that a layer belongs to; None before anything got shorter."""
        return max((first for first in self.firsts if first <= number), default=None)

    def sequence_of(self, number: int, state: LLMForwardState) -> LayerSequence:
        """The sequence of a layer."""
        segment = self.segment(number)
        return state.full_sequence if segment is None else state.sequences[segment]
