"""Hooks that shorten the sequence between the layers of a language model.

Hooks before the decoder layers hand each layer what is left: hidden states, rotary positions and the columns of the
mask. A cache then holds fewer entries in later layers; which, is noted beside it by *segment*, the layers from one
shortening to the next. Everything is index work on what the model itself made: no modelling file is touched.

Which columns a shorter sequence holds is told in `foveate.runtime.forward_state`.
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
    """Hooks that shorten the sequence between the layers of a language model, while attached.

    Args:
        text: The language model.
        plan: Its steps of site "decoder" are followed.
        contiguous: Count positions anew after a shortening; None: as each method's paper does.
        tower: The encoder, for methods that need something of it.

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
            first, steps, acts = (0, attention_steps, "in") if changes_attention else (1, self.steps, "before")
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
                patches.before(layer, self._before(number, segment), with_kwargs=True)
        for number, step in self.steps.items():
            if step.method.needs_previous_attention:
                observe_attention(patches, self.text.layers[number - 1].self_attn, self._observer(number - 1))
            prepare_attention(patches, self.text.layers[number].self_attn)
        if hasattr(self.text, compat.DEEPSTACK):
            patches.wrap(self.text, compat.DEEPSTACK, self._deepstack)

    # Hooks

    def _before(self, number: int, segment: int) -> Callable[..., Any]:
        earlier = [first for first in self.steps if first < segment]
        before = max(earlier, default=None)

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            state = self.calls.state_for_layer(kwargs)
            if state is None:
                return None
            hidden = args[0] if args else kwargs["hidden_states"]
            if number == segment:
                if segment not in state.sequences:
                    if state.images:
                        self._shorten(number, before, module, hidden, state, kwargs)
                    else:
                        state.start_segment(segment, before)
                short = state.sequences[segment]
                if short.parent_columns is not None:
                    hidden = sequence.shorten_features(hidden, short.parent_columns, short.selections)
            short = state.sequences[segment]
            changed = self._arguments(number, hidden, state, short, kwargs)
            if not args:
                return args, {**kwargs, **changed, "hidden_states": hidden}
            rest = tuple(
                sequence.gather(value, short.columns)
                if isinstance(value, Tensor) and value.shape[1:2] == (state.length,)
                else value
                for value in args[1:]
            )
            return (hidden, *rest), {**kwargs, **changed}

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
        """Planes that are added after the first layers follow the images that are left there."""
        state = self.calls.current
        if state is not None:
            for segment in sorted(state.sequences):
                short = state.sequences[segment]
                if short.parent_columns is not None:
                    (plane,), visual = sequence.shorten_planes([plane], visual, short.parent_columns, short.selections)
        return process(hidden, visual, plane)

    # Choosing

    @torch.no_grad()
    def _shorten(
        self,
        number: int,
        before: int | None,
        module: Any,
        hidden: Tensor,
        state: LLMForwardState,
        kwargs: dict[str, Any],
    ) -> None:
        """Run the step of one layer on all images of the pass."""
        state.start_segment(number, before)
        previous = state.sequences[number]
        padding_mask = sequence.gather_mask(state.padding_mask[:, state.past :], previous.columns)
        queries_keys: dict[AttentionSource, tuple[Tensor, Tensor, float]] = {}
        placed: list[PlacedSelection] = []
        selections: dict[int, Selection] = {}
        for image in previous.images:
            if image.number not in selections:  # the others are copies, for beams or several answers
                get_attention = self._ask(number, module, hidden, image.row, state, previous, kwargs, queries_keys)
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
            # Padding stands before all columns that stay, so that the row ascends.
            places = torch.searchsorted(pruned.columns[image.row].contiguous(), kept.kept)
            origin, sources = image.origin[kept.selection.indices], self._sources(image, kept, previous)
            images.append(replace(image, places=places, origin=origin, sources=sources))
        state.sequences[number] = LayerSequence(
            sequence.gather(previous.columns, pruned.columns).masked_fill(pruned.columns < 0, -1),
            sequence.gather(previous.removed, pruned.columns) + pruned.gone,
            previous.total + pruned.total,
            images,
            pruned.columns,
            placed,
        )

    @staticmethod
    def _sources(image: ImageSpan, placed: PlacedSelection, previous: LayerSequence) -> Tensor | None:
        """(k, K) the new columns whose positions the tokens that stay carry; None where each has its own alone."""
        selection = placed.selection
        if image.sources is not None:  # K positions of the token that a row stands at are those of the row
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
        last: LayerSequence,
        seen: Tensor,
        ask: Callable[[Tensor | None, AttentionSource], Attention],
    ) -> Selection:
        row, step = image.row, self.steps[number]
        own = state.same_sample(row, last.columns, image.places)
        text = seen[row] > 0
        if own is not None:
            text = text & own
        for other in last.images:
            if other.row == row:
                text = text.index_fill(0, other.places, False)
        real = (seen[row] > 0) if own is None else (seen[row] > 0) & own
        asking = real.nonzero().flatten()[-1:]
        if state.query_mask is not None:
            told = sequence.gather_mask(state.query_mask[row : row + 1], last.columns[row : row + 1])[0] > 0
            told = told if own is None else told & own
            asking = told.nonzero().flatten() if own is None or bool(told.any()) else asking
        before = [other for other in last.images if other.row == row and other.number < image.number]
        if own is not None:
            before = [other for other in before if bool(own[other.places].any())]
        # A sample among others is shown as if it stood alone.
        place = own.nonzero().flatten() if own is not None and state.sample_ids is not None else None
        entered, columns = state.input_embeds[row], last.columns[row]
        whole = next(whole.places for whole in state.images if (whole.number, whole.row) == (image.number, row))
        sequence_, places = hidden[row], image.places
        if place is not None:
            block = (state.sample_ids[row] == state.sample_ids[row, whole[0]]).nonzero().flatten()  # ty: ignore[not-subscriptable]
            entered, columns = entered[block], torch.searchsorted(block, columns[place].contiguous())
            whole, sequence_ = torch.searchsorted(block, whole.contiguous()), sequence_[place]
            places, text, asking = (
                torch.searchsorted(place, one.contiguous()) for one in (places, text.nonzero().flatten(), asking)
            )
        else:
            text = text.nonzero().flatten()
        neurons = None
        if isinstance(step.method, NeuronMethod):
            neurons = partial(self._activations, number, image, state, place)
        tokens = LayerTokens(
            features=hidden[row, image.places],
            places=places,
            layer=number,
            num_layers=len(self.text.layers),
            number=len(before),
            learning=self.text.training and state.query_mask is not None,
            prompt=PromptStates(
                hidden=sequence_, text=text, asking=asking, entered=entered, columns=columns, image=whole
            ),
            encoder=EncoderResults(
                tower=self.tower,
                origin=image.origin,
                measured=image.measured,
                separators=image.separators,
                layout=image.crops,
            ),
            model=ModelAccess(ask=partial(ask, place), norm=self.text.norm, neurons=neurons),
        )
        start = time.perf_counter()
        selection = state.decisions.get((image.number, number))
        if selection is None:
            selection = step.method(tokens, step.count(len(tokens)))
            state.decisions[image.number, number] = selection
        spent = 1000 * (time.perf_counter() - start)
        report = LayerReport(
            str(step), number, len(tokens), len(selection), spent, image.origin[selection.indices].cpu()
        )
        state.reports.setdefault(image.number, []).append(report)
        return selection

    def _activations(
        self, number: int, image: ImageSpan, state: LLMForwardState, sample: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Activations (N, F) of an image in the layer before `number`, and core neurons (c,) of its sample."""
        activations, core = self._mlp_hooks.neurons(number, image.row, state, sample)
        return activations[image.places], core

    def _ask(
        self,
        number: int,
        module: Any,
        hidden: Tensor,
        row: int,
        state: LLMForwardState,
        last: LayerSequence,
        kwargs: dict[str, Any],
        made: dict[AttentionSource, tuple[Tensor, Tensor, float]],
    ) -> Callable[[Tensor | None, AttentionSource], Attention]:
        def ask(sample: Tensor | None, asked: AttentionSource) -> Attention:
            segment = number
            if asked == "previous":
                if number - 1 not in state.keys:
                    raise FoveateError(
                        f"{self.steps[number].method.name} asks layer {number - 1} and did not declare it."
                    )
                made[asked] = state.keys[number - 1]
                segment = max((first for first in self.steps if first < number), default=-1)
            elif asked not in made:
                check_not_offloaded(module)
                rotation = self._rotation(number, hidden, state, last, kwargs["position_embeddings"])
                query, key, scaling = rotated_queries_keys(module.self_attn, module.input_layernorm(hidden), rotation)
                made[asked] = (query, self._with_past(number, state, key), scaling)
            query, key, scaling = made[asked]
            held = torch.cat([state.cached_columns(segment)[row], state.with_past(last.columns[row])])
            seen = (held >= 0) & (state.padding_mask[row][held.clamp(min=0)] > 0)
            key = key[row, :, : len(held)]  # a static cache has room behind what it holds
            seen = seen[len(held) - key.shape[1] :]  # and a window has forgotten what came first
            if sample is not None:  # packed rows have no cache
                return Attention(query[row][:, sample], key[:, sample], scaling)
            allowed = None
            if state.pair_mask is not None:
                allowed = sequence.gather_pairs(
                    state.pair_mask[row : row + 1, None], last.columns[row : row + 1], held[-key.shape[1] :][None]
                )[0, 0]
            return Attention(query[row], key, scaling, None if bool(seen.all()) else seen, allowed)

        return ask

    def _with_past(self, number: int, state: LLMForwardState, key: Tensor) -> Tensor:
        """Keys of a layer with those that its cache holds."""
        held = state.cached_columns(number).shape[1]
        if not held:
            return key
        return torch.cat([state.cache.layers[number].keys[:, :, :held].to(key), key], dim=2)

    # What a layer is called with

    def _arguments(
        self, number: int, hidden: Tensor, state: LLMForwardState, short: LayerSequence, kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """The arguments of a layer that differ for the shorter sequence."""
        mask, rotation, ids = (kwargs.get(name) for name in ("attention_mask", "position_embeddings", "position_ids"))
        cached = state.cache.layers[number] if state.cache is not None and number < len(state.cache.layers) else None
        capacity = getattr(cached, "max_cache_len", None)
        window = getattr(self.text.layers[number].self_attn, "sliding_window", None)
        if capacity is not None and window is not None and self.calls.segment(number) is not None:
            raise FoveateError(
                f"{self.plan} shortens layer {number}, which looks back {window} tokens; a static cache cannot hold "
                "less in such a layer: use a dynamic one."
            )
        key = (id(mask), id(rotation), window, capacity)
        if key not in short.layer_arguments:
            arguments = {
                "attention_mask": self._mask(number, state, short.columns, mask, hidden.dtype, window, capacity),
                "position_embeddings": self._rotation(number, hidden, state, short, rotation),
            }
            if isinstance(ids, Tensor):
                arguments["position_ids"] = sequence.gather_positions(ids, short.columns)
            if kwargs.get("cu_seq_lens_q") is not None and state.sample_ids is not None:
                arguments |= flash_arguments(sequence.gather(state.sample_ids, short.columns))
            # The originals are kept with them: what has their identity must not be something else later.
            short.layer_arguments[key] = (arguments, mask, rotation)
        return short.layer_arguments[key][0]

    def _rotation(
        self, number: int, hidden: Tensor, state: LLMForwardState, short: LayerSequence, rotation: Any
    ) -> Any:
        """Rotary positions of the short sequence."""
        segment = self.calls.segment(number)
        if segment is None:
            return rotation
        contiguous = self.steps[segment].method.positions == "contiguous"
        if self.contiguous is not None:
            contiguous = self.contiguous
        merged_images = [image for image in short.images if image.sources is not None]
        if merged_images and contiguous and state.positions.ndim != 3:
            raise FoveateError(f"{self.plan} gives tokens several positions of the original sequence; leave them so.")
        if merged_images:
            return tuple(self._merged_rotation(value, short, merged_images, state) for value in rotation)
        if not contiguous or state.positions.ndim == 3:
            if short.columns.shape[1] == state.length and not short.padded:
                return rotation
            return tuple(_along(value, short.columns) for value in rotation)
        removed = short.removed + state.removed_before(segment)
        ids = sequence.gather_positions(state.positions, short.columns, removed)
        extra = (self.text.config.layer_types[number],) if self._by_type else ()
        return self.text.rotary_emb(hidden, ids, *extra)

    def _merged_rotation(
        self, value: Tensor, short: LayerSequence, merged_images: list[ImageSpan], state: LLMForwardState
    ) -> Tensor:
        """Cosines or sines of the short sequence, where tokens of some images carry several positions."""
        rotations = _along(value, short.columns).clone()
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
        """The mask of the short sequence, of the same form as the long one's.

        Args:
            number: The layer.
            state: The pass.
            columns: (B, P) of the new columns.
            mask: What the layer would be given.
            dtype: Of the hidden states.
            window: Tokens that the layer looks back at most, itself included; None: all.
            capacity: Entries that a cache of fixed size has; None: it grows.
        """
        held = state.cached_columns(self.calls.segment(number))
        if window is not None:
            held = held[:, max(held.shape[1] - window + 1, 0) :]  # a window forgets
        keys = torch.cat([held, state.with_past(columns)], dim=1)
        if mask is None:
            return None if bool((keys >= 0).all()) else self._causal(state, columns, keys, window, dtype)
        if not isinstance(mask, Tensor):
            raise FoveateError(f"{self.plan} cannot be followed with masks of type {type(mask).__name__}.")
        # The mask of a layer with a window begins later than the sequence.
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
        """A causal mask where the model itself needed none, and padding now asks for one."""
        kind = compat.attention_name(self.text.config)
        if "flash" in kind:
            return (keys >= 0).long()
        queries = torch.where(columns < 0, -1, columns + state.past)
        allowed = (keys[:, None] >= 0) & (keys[:, None] <= queries[:, :, None])
        if window is not None:
            allowed &= keys[:, None] > queries[:, :, None] - window
        allowed |= (columns < 0)[:, :, None]  # rows of padding see everything: what sees nothing is no number
        if "eager" not in kind:
            return allowed[:, None]
        return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)[:, None]


def _along(value: Tensor, columns: Tensor) -> Tensor:
    """Rotary cosines or sines (..., B or 1, L, d) at columns (B, P)."""
    spread = value.expand(*value.shape[:-3], len(columns), *value.shape[-2:])
    index = columns.clamp(min=0)[..., None].expand(*spread.shape[:-3], *columns.shape, value.shape[-1])
    return spread.gather(-2, index)
