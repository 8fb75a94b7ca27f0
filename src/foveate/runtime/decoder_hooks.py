"""Hooks that prune the sequence between the layers of a language model.

Hooks before the decoder layers give each layer the remaining hidden states, rotary positions and columns of the
mask. A cache then holds fewer entries in later layers; its state records which, by *segment*, the layers from one
pruning to the next. Only tensors that the model itself made are indexed: no modelling code is changed.

`foveate.runtime.forward_state` holds the columns of the pruned sequences.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate import compat
from foveate.core import sequence
from foveate.core.attention import Attention
from foveate.core.errors import FoveateError, Refusal
from foveate.core.in_attention import AttentionMethod
from foveate.core.in_decoder import (
    AttentionSource,
    DecoderMethod,
    EarlierLayers,
    EncoderResults,
    LayerTokens,
    ModelAccess,
    PromptStates,
)
from foveate.core.in_mlp import NeuronMethod
from foveate.core.plan import Plan, Step
from foveate.core.sequence import PlacedSelection
from foveate.core.tokens import EncoderSpec, Selection
from foveate.families.text_models import TEXT_TYPES
from foveate.runtime.attention_functions import observe_attention, prepare_attention
from foveate.runtime.attention_hooks import AttentionHooks
from foveate.runtime.attention_masks import flash_arguments
from foveate.runtime.first_layer_attention import check_not_offloaded, rotated_queries_keys
from foveate.runtime.forward_state import CurrentCalls, ImageSpan, LayerSequence, LLMForwardState
from foveate.runtime.mlp_hooks import MLPHooks
from foveate.runtime.multi_position_rope import gather_rotations
from foveate.runtime.patches import Patches
from foveate.runtime.report import LayerReport


class DecoderHooks:
    """Hooks that prune the sequence between the layers of a language model, while attached.

    Args:
        text: The language model.
        plan: The plan, whose steps at the site "decoder" are run.
        contiguous: Renumber positions after a pruning; None: as in each method's paper.
        tower: Specification of the encoder, for methods that need it.

    Raises:
        FoveateError: the language model is of a kind that cannot be shortened inside, or has not the layers named.
    """

    def __init__(self, text: Any, plan: Plan, contiguous: bool | None, tower: EncoderSpec) -> None:
        self.text = text
        self.tower = tower
        self.plan = plan
        model_type = getattr(getattr(text, "config", None), "model_type", type(text).__name__)
        if model_type not in TEXT_TYPES:
            raise FoveateError(
                Refusal(
                    "needs-decoder-layers",
                    f"{plan} acts inside the language model, which does not work in {model_type}",
                    f"it works in {', '.join(TEXT_TYPES)}",
                )
            )
        count = len(text.layers)
        self.steps: dict[int, Step[DecoderMethod]] = {}
        attention_steps: dict[int, Step[Any]] = {}  # layers whose attention a step changes
        for step in plan.decoder_steps:
            changes_attention = isinstance(step.method, AttentionMethod)
            steps: dict[int, Step[Any]]
            steps, acts = (attention_steps, "in") if changes_attention else (self.steps, "before")
            first = step.method.first_layer
            for layer in step.layers or step.method.layers(count):
                if not first <= layer < count:
                    raise FoveateError(
                        Refusal(
                            "no-such-layer",
                            f"{step} acts {acts} layer {layer}",
                            f"this language model has layers {first} to {count - 1} for that",
                        )
                    )
                if steps.setdefault(layer, step) is not step:
                    raise FoveateError(
                        Refusal(
                            "same-layer",
                            f"two steps of {plan} act {acts} layer {layer}",
                            "give one of them another one",
                        )
                    )
        self.steps = dict(sorted(self.steps.items()))
        neuron_methods = {
            layer: step.method for layer, step in self.steps.items() if isinstance(step.method, NeuronMethod)
        }
        self.calls = CurrentCalls(text, tuple(self.steps))
        self._mlp_hooks = MLPHooks(self.calls, neuron_methods)
        self._attention_hooks = AttentionHooks(self.calls, dict(sorted(attention_steps.items())))
        self.contiguous = contiguous
        rotary = text.rotary_emb.forward
        self._by_type = "layer_type" in inspect.signature(rotary).parameters

    def attach(self, patches: Patches) -> None:
        """Install the hooks, until `patches` are undone."""
        self._attention_hooks.attach(patches)  # first, so that what watches a layer sees it whole
        self._mlp_hooks.attach(patches)
        for number, layer in enumerate(self.text.layers):
            segment = self.calls.segment(number)
            if segment is not None:
                patches.before(layer, self._layer_hook(number, segment), with_kwargs=True)
        for number, step in self.steps.items():
            if step.method.needs_previous_attention:
                observe_attention(patches, self.text.layers[number - 1].self_attn, self._observer(number - 1))
            prepare_attention(patches, self.text.layers[number].self_attn)
        if hasattr(self.text, compat.DEEPSTACK):
            patches.wrap(self.text, compat.DEEPSTACK, self._deepstack)

    # Hooks

    def _layer_hook(self, number: int, segment: int) -> Callable[..., Any]:
        earlier = [first for first in self.steps if first < segment]
        previous_segment = max(earlier, default=None)

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            state = self.calls.state_for_layer(kwargs)
            if state is None:
                return None
            hidden = args[0] if args else kwargs["hidden_states"]
            if number == segment:
                if segment not in state.sequences:
                    if state.images:
                        self._prune(number, previous_segment, module, hidden, state, kwargs)
                    else:
                        state.start_segment(segment, previous_segment)
                layer_sequence = state.sequences[segment]
                if layer_sequence.parent_columns is not None:
                    hidden = sequence.shorten_features(hidden, layer_sequence.parent_columns, layer_sequence.selections)
            layer_sequence = state.sequences[segment]
            changed = self._arguments(number, hidden, state, layer_sequence, kwargs)
            if not args:
                return args, {**kwargs, **changed, "hidden_states": hidden}
            other_args = tuple(
                sequence.gather(value, layer_sequence.columns)
                if isinstance(value, Tensor) and value.shape[1:2] == (state.length,)
                else value
                for value in args[1:]
            )
            return (hidden, *other_args), {**kwargs, **changed}

        return hook

    def _observer(self, layer: int) -> Callable[..., None]:
        def observe(module: nn.Module, query: Tensor, key: Tensor, mask: Any, options: dict[str, Any]) -> None:
            state = self.calls.current
            if state is not None and state.images:
                scaling = options.get("scaling")
                scaling = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
                state.keys[layer] = (query.detach(), key.detach(), scaling)

        return observe

    def _deepstack(self, process: Callable[..., Tensor], hidden: Tensor, visual: Tensor, plane: Tensor) -> Tensor:
        """Prune DeepStack features to match the kept visual tokens."""
        state = self.calls.current
        if state is not None:
            for segment in sorted(state.sequences):
                layer_sequence = state.sequences[segment]
                if layer_sequence.parent_columns is not None:
                    (plane,), visual = sequence.shorten_planes(
                        [plane], visual, layer_sequence.parent_columns, layer_sequence.selections
                    )
        return process(hidden, visual, plane)

    # Selecting tokens

    @torch.no_grad()
    def _prune(
        self,
        number: int,
        previous_segment: int | None,
        module: Any,
        hidden: Tensor,
        state: LLMForwardState,
        kwargs: dict[str, Any],
    ) -> None:
        """Run the step of one layer on all images, and start its segment."""
        state.start_segment(number, previous_segment)
        previous = state.sequences[number]
        padding_mask = sequence.gather_mask(state.padding_mask[:, state.past :], previous.columns)
        queries_keys: dict[AttentionSource, tuple[Tensor, Tensor, float]] = {}
        placed: list[PlacedSelection] = []
        selections: dict[int, Selection] = {}
        for image in previous.images:
            if image.number not in selections:  # later ones are copies, for beams or several answers
                get_attention = self._attention_getter(
                    number, module, hidden, image.row, state, previous, kwargs, queries_keys
                )
                selections[image.number] = self._select(
                    number, hidden, image, state, previous, padding_mask, get_attention
                )
            placed.append(PlacedSelection(image.row, image.places, selections[image.number]))
        state.keys.pop(number - 1, None)
        self._mlp_hooks.drop_activations(number, state)
        if all(image.changes_nothing for image in placed):
            return
        stretches = None
        if state.stretches is not None:
            stretches = sequence.gather(state.stretches, previous.columns).masked_fill(previous.columns < 0, -1)
        pruned = sequence.kept_columns(
            len(padding_mask), previous.columns.shape[1], placed, padding_mask, hidden.device, stretches
        )
        images = []
        for image, kept in zip(previous.images, placed, strict=True):
            # Padding comes before all kept columns, so the row ascends.
            places = torch.searchsorted(pruned.columns[image.row].contiguous(), kept.kept)
            origin, sources = image.origin[kept.selection.indices], self._sources(image, kept, previous)
            images.append(replace(image, places=places, origin=origin, sources=sources))
        state.sequences[number] = LayerSequence(
            sequence.gather(previous.columns, pruned.columns).masked_fill(pruned.columns < 0, -1),
            sequence.gather(previous.removed, pruned.columns) + pruned.removed,
            previous.total + pruned.total,
            images,
            pruned.columns,
            placed,
        )

    @staticmethod
    def _sources(image: ImageSpan, placed: PlacedSelection, previous: LayerSequence) -> Tensor | None:
        """(k, K) the new columns whose positions rotate the kept tokens; None where each has one position."""
        selection = placed.selection
        if image.sources is not None:  # a row keeps the K positions of its token
            return image.sources[selection.indices]
        if selection.positions is None:
            return None
        return previous.columns[image.row][image.places][selection.positions]

    def _select(
        self,
        number: int,
        hidden: Tensor,
        image: ImageSpan,
        state: LLMForwardState,
        segment: LayerSequence,
        padding_mask: Tensor,
        get_attention: Callable[[Tensor | None, AttentionSource], Attention],
    ) -> Selection:
        row, step = image.row, self.steps[number]
        in_sample = state.same_sample(row, segment.columns, image.places)
        text = padding_mask[row] > 0
        if in_sample is not None:
            text = text & in_sample
        for other in segment.images:
            if other.row == row:
                text = text.index_fill(0, other.places, False)
        real_columns = (padding_mask[row] > 0) if in_sample is None else (padding_mask[row] > 0) & in_sample
        queries = real_columns.nonzero().flatten()[-1:]
        if state.query_mask is not None:
            from_labels = sequence.gather_mask(state.query_mask[row : row + 1], segment.columns[row : row + 1])[0] > 0
            from_labels = from_labels if in_sample is None else from_labels & in_sample
            queries = from_labels.nonzero().flatten() if in_sample is None or bool(from_labels.any()) else queries
        earlier = [other for other in segment.images if other.row == row and other.number < image.number]
        if in_sample is not None:
            earlier = [other for other in earlier if bool(in_sample[other.places].any())]
        # A packed sample is indexed as if it were alone.
        sample_positions = (
            in_sample.nonzero().flatten() if in_sample is not None and state.sample_ids is not None else None
        )
        input_embeds, columns = state.input_embeds[row], segment.columns[row]
        image_places = next(
            image_places.places
            for image_places in state.images
            if (image_places.number, image_places.row) == (image.number, row)
        )
        sequence_states, places = hidden[row], image.places
        if sample_positions is not None:
            sample_columns = (state.sample_ids[row] == state.sample_ids[row, image_places[0]]).nonzero().flatten()  # ty: ignore[not-subscriptable]
            input_embeds, columns = (
                input_embeds[sample_columns],
                torch.searchsorted(sample_columns, columns[sample_positions].contiguous()),
            )
            image_places, sequence_states = (
                torch.searchsorted(sample_columns, image_places.contiguous()),
                sequence_states[sample_positions],
            )
            places, text, queries = (
                torch.searchsorted(sample_positions, positions.contiguous())
                for positions in (places, text.nonzero().flatten(), queries)
            )
        else:
            text = text.nonzero().flatten()
        neurons = None
        if isinstance(step.method, NeuronMethod):
            neurons = partial(self._activations, number, image, state, sample_positions)
        tokens = LayerTokens(
            features=hidden[row, image.places],
            indices=places,
            layer=number,
            num_layers=len(self.text.layers),
            number=len(earlier),
            learning=self.text.training and state.query_mask is not None,
            prompt=PromptStates(
                hidden=sequence_states,
                text=text,
                asking=queries,
                entered=input_embeds,
                columns=columns,
                image=image_places,
            ),
            encoder=EncoderResults(
                tower=self.tower,
                origin=image.origin,
                measured=image.measured,
                separators=image.separators,
                layout=image.crops,
            ),
            model=ModelAccess(ask=partial(get_attention, sample_positions), norm=self.text.norm, neurons=neurons),
            earlier=self._earlier(number, image, state),
        )
        start = time.perf_counter()
        selection = state.decisions.get((image.number, number))
        if selection is None:
            selection = step.method(tokens, step.count(len(tokens)))
            state.decisions[image.number, number] = selection
        milliseconds = 1000 * (time.perf_counter() - start)
        report = LayerReport(
            str(step), number, len(tokens), len(selection), milliseconds, image.origin[selection.indices].cpu()
        )
        state.reports.setdefault(image.number, []).append(report)
        return selection

    def _earlier(self, number: int, image: ImageSpan, state: LLMForwardState) -> EarlierLayers:
        """How many tokens of an image there were before layer `number`."""
        read = []
        for layer in range(number):
            spans = self.calls.sequence_of(layer, state).images
            read.append(
                next(len(span.places) for span in spans if (span.number, span.row) == (image.number, image.row))
            )
        acted = tuple(layer for layer, step in self.steps.items() if layer < number and step is self.steps[number])
        return EarlierLayers(made=image.layout.count, read=tuple(read), acted=acted)

    def _activations(
        self, number: int, image: ImageSpan, state: LLMForwardState, sample: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Activations (N, F) of an image in the layer before `number`, and core neurons (c,) of its sample."""
        activations, core = self._mlp_hooks.neurons(number, image.row, state, sample)
        return activations[image.places], core

    def _attention_getter(
        self,
        number: int,
        module: Any,
        hidden: Tensor,
        row: int,
        state: LLMForwardState,
        segment_sequence: LayerSequence,
        kwargs: dict[str, Any],
        computed: dict[AttentionSource, tuple[Tensor, Tensor, float]],
    ) -> Callable[[Tensor | None, AttentionSource], Attention]:
        def get_attention(sample: Tensor | None, source: AttentionSource) -> Attention:
            segment = number
            if source == "previous":
                if number - 1 not in state.keys:
                    raise FoveateError(
                        f"{self.steps[number].method.name} reads the attention of layer {number - 1}; declare it with "
                        "needs_previous_attention."
                    )
                computed[source] = state.keys[number - 1]
                segment = max((first for first in self.steps if first < number), default=-1)
            elif source not in computed:
                check_not_offloaded(module)
                rotation = self._rotation(number, hidden, state, segment_sequence, kwargs["position_embeddings"])
                query, key, scaling = rotated_queries_keys(module.self_attn, module.input_layernorm(hidden), rotation)
                computed[source] = (query, self._with_past(number, state, key), scaling)
            query, key, scaling = computed[source]
            key_columns = torch.cat(
                [state.cached_columns(segment)[row], state.with_past(segment_sequence.columns[row])]
            )
            visible = (key_columns >= 0) & (state.padding_mask[row][key_columns.clamp(min=0)] > 0)
            key = key[row, :, : len(key_columns)]  # static caches are longer than their content
            visible = visible[len(key_columns) - key.shape[1] :]  # and windows drop the first keys
            if sample is not None:  # packed rows have no cache
                return Attention(query[row][:, sample], key[:, sample], scaling)
            allowed = None
            if state.pair_mask is not None:
                allowed = sequence.gather_pairs(
                    state.pair_mask[row : row + 1, None],
                    segment_sequence.columns[row : row + 1],
                    key_columns[-key.shape[1] :][None],
                )[0, 0]
            return Attention(query[row], key, scaling, None if bool(visible.all()) else visible, allowed)

        return get_attention

    def _with_past(self, number: int, state: LLMForwardState, key: Tensor) -> Tensor:
        """Keys of a layer, with the cached ones before them."""
        num_cached = state.cached_columns(number).shape[1]
        if not num_cached:
            return key
        return torch.cat([state.cache.layers[number].keys[:, :, :num_cached].to(key), key], dim=2)

    # Arguments of a layer

    def _arguments(
        self, number: int, hidden: Tensor, state: LLMForwardState, layer_sequence: LayerSequence, kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """Arguments of a layer that change for the pruned sequence."""
        mask, rotation, ids = (kwargs.get(name) for name in ("attention_mask", "position_embeddings", "position_ids"))
        cached = state.cache.layers[number] if state.cache is not None and number < len(state.cache.layers) else None
        capacity = getattr(cached, "max_cache_len", None)
        window = getattr(self.text.layers[number].self_attn, "sliding_window", None)
        if capacity is not None and window is not None and self.calls.segment(number) is not None:
            raise FoveateError(
                f"{self.plan} prunes layer {number}, which has a sliding window of {window} tokens; a static cache "
                "cannot hold fewer tokens in such a layer: use a dynamic one."
            )
        key = (id(mask), id(rotation), window, capacity)
        if key not in layer_sequence.layer_arguments:
            arguments = {
                "attention_mask": self._mask(
                    number, state, layer_sequence.columns, mask, hidden.dtype, window, capacity
                ),
                "position_embeddings": self._rotation(number, hidden, state, layer_sequence, rotation),
            }
            if isinstance(ids, Tensor):
                arguments["position_ids"] = sequence.gather_positions(ids, layer_sequence.columns)
            if kwargs.get("cu_seq_lens_q") is not None and state.sample_ids is not None:
                arguments |= flash_arguments(sequence.gather(state.sample_ids, layer_sequence.columns))
            if state is not self.calls.current:  # a checkpointed layer that runs again
                self.calls.remember(arguments, state)  # its attention has hooks, too
                return arguments
            # The originals are stored too, so that their ids are not reused by other objects.
            layer_sequence.layer_arguments[key] = (arguments, mask, rotation)
        return layer_sequence.layer_arguments[key][0]

    def _rotation(
        self, number: int, hidden: Tensor, state: LLMForwardState, layer_sequence: LayerSequence, rotation: Any
    ) -> Any:
        """Rotary cosines and sines of the pruned sequence."""
        segment = self.calls.segment(number)
        if segment is None:
            return rotation
        contiguous = self.steps[segment].method.positions == "contiguous"
        if self.contiguous is not None:
            contiguous = self.contiguous
        merged_images = [image for image in layer_sequence.images if image.sources is not None]
        if merged_images and contiguous and state.positions.ndim != 3:
            raise FoveateError(
                f"{self.plan} gives tokens several original positions; leave positions='contiguous' out."
            )
        if merged_images:
            return tuple(self._merged_rotation(value, layer_sequence, merged_images, state) for value in rotation)
        if not contiguous or state.positions.ndim == 3:
            if layer_sequence.columns.shape[1] == state.length and not layer_sequence.padded:
                return rotation
            return tuple(_along(value, layer_sequence.columns) for value in rotation)
        removed = layer_sequence.removed + state.removed_before(segment)
        ids = sequence.gather_positions(state.positions, layer_sequence.columns, removed)
        extra = (self.text.config.layer_types[number],) if self._by_type else ()
        return self.text.rotary_emb(hidden, ids, *extra)

    def _merged_rotation(
        self, value: Tensor, layer_sequence: LayerSequence, merged_images: list[ImageSpan], state: LLMForwardState
    ) -> Tensor:
        """Cosines or sines of the pruned sequence, where tokens of some images have several positions."""
        rotations = _along(value, layer_sequence.columns).clone()
        for image in merged_images:
            if image.sources is not None:
                rotations[image.row, image.places] = gather_rotations(
                    self.text, value, image.row, image.sources, state.positions.ndim == 3
                )
        return rotations

    def _mask(
        self,
        number: int,
        state: LLMForwardState,
        columns: Tensor,
        mask: Any,
        dtype: torch.dtype,
        window: int | None,
        capacity: int | None,
    ) -> Any:
        """The mask of the pruned sequence, in the form of the full one's.

        Args:
            number: The layer.
            state: State of the call.
            columns: (B, P) of the new columns.
            mask: The layer's mask for the full sequence.
            dtype: Dtype of the hidden states.
            window: Length of the layer's sliding window, the token itself included; None: no window.
            capacity: Length of a static cache; None: the cache is dynamic.
        """
        cached = state.cached_columns(self.calls.segment(number))
        if window is not None:
            cached = cached[:, max(cached.shape[1] - window + 1, 0) :]  # a window drops the first keys
        keys = torch.cat([cached, state.with_past(columns)], dim=1)
        if mask is None:
            return None if bool((keys >= 0).all()) else self._causal(state, columns, keys, window, dtype)
        if not isinstance(mask, Tensor):
            raise FoveateError(
                f"{self.plan} cannot prune masks of type {type(mask).__name__}; load the model with sdpa."
            )
        # The mask of a layer with a window begins later in the sequence.
        offset = 0 if capacity is not None and window is None else max(state.padding_mask.shape[1] - mask.shape[-1], 0)
        places = torch.where(keys < offset, -1, keys - offset)
        if mask.ndim == 2:
            return sequence.gather_mask(mask, places)
        pruned = sequence.gather_pairs(mask, columns, places)
        lowest = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        return pruned if capacity is None else F.pad(pruned, (0, capacity - pruned.shape[-1]), value=lowest)

    def _causal(
        self, state: LLMForwardState, columns: Tensor, keys: Tensor, window: int | None, dtype: torch.dtype
    ) -> Tensor:
        """A causal mask for a pruned sequence with padding, where the model passed none."""
        attention_name = compat.attention_name(self.text.config)
        if "flash" in attention_name:
            return (keys >= 0).long()
        queries = torch.where(columns < 0, -1, columns + state.past)
        allowed = (keys[:, None] >= 0) & (keys[:, None] <= queries[:, :, None])
        if window is not None:
            allowed &= keys[:, None] > queries[:, :, None] - window
        allowed |= (columns < 0)[:, :, None]  # padding attends to everything: empty rows would be NaN
        if "eager" not in attention_name:
            return allowed[:, None]
        return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)[:, None]


def _along(value: Tensor, columns: Tensor) -> Tensor:
    """Rotary cosines or sines (..., B or 1, L, d) at columns (B, P)."""
    spread = value.expand(*value.shape[:-3], len(columns), *value.shape[-2:])
    index = columns.clamp(min=0)[..., None].expand(*spread.shape[:-3], *columns.shape, value.shape[-1])
    return spread.gather(-2, index)
