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
from foveate.runtime.attention_functions import expect, watch
from foveate.runtime.attention_hooks import AttentionHooks
from foveate.runtime.first_layer_attention import check_at_hand, rotated
from foveate.runtime.forward_state import CurrentCalls, ImageSpan, LayerSequence, LLMForwardState
from foveate.runtime.mlp_hooks import MLPHooks
from foveate.runtime.multi_position_rope import carry
from foveate.runtime.patches import Patches
from foveate.runtime.report import LayerReport
from foveate.runtime.sight import edges_of


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
        kind = getattr(getattr(text, "config", None), "model_type", type(text).__name__)
        if kind not in TEXT_TYPES:
            raise FoveateError(
                Refusal(
                    "needs-decoder-layers",
                    f"{plan} acts inside the language model, which does not work in {kind}",
                    f"it works in {', '.join(TEXT_TYPES)}",
                )
            )
        count = len(text.layers)
        self.steps: dict[int, Step[DecoderMethod]] = {}
        changed: dict[int, Step[Any]] = {}  # layers whose attention a step changes
        for step in plan.decoder_steps:
            inside = isinstance(step.method, AttentionMethod)
            steps: dict[int, Step[Any]]
            first, steps, acts = (0, changed, "in") if inside else (1, self.steps, "before")
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
        asking = {layer: step.method for layer, step in self.steps.items() if isinstance(step.method, NeuronMethod)}
        self.calls = CurrentCalls(text, tuple(self.steps))
        self._neurons = MLPHooks(self.calls, asking)
        self._changed = AttentionHooks(self.calls, dict(sorted(changed.items())))
        self.contiguous = contiguous
        rotary = text.rotary_emb.forward
        self._by_type = "layer_type" in inspect.signature(rotary).parameters

    def attach(self, patches: Patches) -> None:
        """Install the hooks, until `patches` are undone."""
        self._changed.attach(patches)  # first, so that what watches a layer sees it whole
        self._neurons.attach(patches)
        for number, layer in enumerate(self.text.layers):
            segment = self.calls.segment(number)
            if segment is not None:
                patches.before(layer, self._before(number, segment), with_kwargs=True)
        for number, step in self.steps.items():
            if step.method.needs_previous_attention:
                watch(patches, self.text.layers[number - 1].self_attn, self._observer(number - 1))
            expect(patches, self.text.layers[number].self_attn)
        if hasattr(self.text, compat.DEEPSTACK):
            patches.wrap(self.text, compat.DEEPSTACK, self._deepstack)

    # Hooks

    def _before(self, number: int, segment: int) -> Callable[..., Any]:
        earlier = [first for first in self.steps if first < segment]
        before = max(earlier, default=None)

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            found = self.calls.pass_of(kwargs)
            if found is None:
                return None
            hidden = args[0] if args else kwargs["hidden_states"]
            if number == segment:
                if segment not in found.shorts:
                    if found.images:
                        self._shorten(number, before, module, hidden, found, kwargs)
                    else:
                        found.begin(segment, before)
                short = found.shorts[segment]
                if short.taken is not None:
                    hidden = sequence.shorten_features(hidden, short.taken, short.chosen)
            short = found.shorts[segment]
            changed = self._arguments(number, hidden, found, short, kwargs)
            if not args:
                return args, {**kwargs, **changed, "hidden_states": hidden}
            rest = tuple(
                sequence.gather(value, short.columns)
                if isinstance(value, Tensor) and value.shape[1:2] == (found.length,)
                else value
                for value in args[1:]
            )
            return (hidden, *rest), {**kwargs, **changed}

        return hook

    def _observer(self, layer: int) -> Callable[..., None]:
        def observe(module: nn.Module, query: Tensor, key: Tensor, mask: Any, options: dict[str, Any]) -> None:
            found = self.calls.current
            if found is not None and found.images:
                scaling = options.get("scaling")
                scaling = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
                found.keys[layer] = (query.detach(), key.detach(), scaling)

        return observe

    def _deepstack(self, process: Callable[..., Tensor], hidden: Tensor, visual: Tensor, plane: Tensor) -> Tensor:
        """Planes that are added after the first layers follow the images that are left there."""
        found = self.calls.current
        if found is not None:
            for segment in sorted(found.shorts):
                short = found.shorts[segment]
                if short.taken is not None:
                    (plane,), visual = sequence.shorten_planes([plane], visual, short.taken, short.chosen)
        return process(hidden, visual, plane)

    # Choosing

    @torch.no_grad()
    def _shorten(
        self,
        number: int,
        before: int | None,
        module: Any,
        hidden: Tensor,
        found: LLMForwardState,
        kwargs: dict[str, Any],
    ) -> None:
        """Run the step of one layer on all images of the pass."""
        found.begin(number, before)
        last = found.shorts[number]
        seen = sequence.gather_mask(found.seen[:, found.past :], last.columns)
        made: dict[AttentionSource, tuple[Tensor, Tensor, float]] = {}
        chosen: list[PlacedSelection] = []
        selections: dict[int, Selection] = {}
        for image in last.images:
            if image.number not in selections:  # the others are copies, for beams or several answers
                ask = self._ask(number, module, hidden, image.row, found, last, kwargs, made)
                selections[image.number] = self._select(number, hidden, image, found, last, seen, ask)
            chosen.append(PlacedSelection(image.row, image.places, selections[image.number]))
        found.keys.pop(number - 1, None)
        self._neurons.forget(number, found)
        if all(image.changes_nothing for image in chosen):
            return
        stretches = None
        if found.stretches is not None:
            stretches = sequence.gather(found.stretches, last.columns).masked_fill(last.columns < 0, -1)
        shorter = sequence.kept_columns(len(seen), last.columns.shape[1], chosen, seen, hidden.device, stretches)
        images = []
        for image, one in zip(last.images, chosen, strict=True):
            # Padding stands before all columns that stay, so that the row ascends.
            places = torch.searchsorted(shorter.columns[image.row].contiguous(), one.kept)
            origin, sources = image.origin[one.selection.indices], self._sources(image, one, last)
            images.append(replace(image, places=places, origin=origin, sources=sources))
        found.shorts[number] = LayerSequence(
            sequence.gather(last.columns, shorter.columns).masked_fill(shorter.columns < 0, -1),
            sequence.gather(last.gone, shorter.columns) + shorter.removed,
            last.total + shorter.total,
            images,
            shorter.columns,
            chosen,
        )

    @staticmethod
    def _sources(image: ImageSpan, chosen: PlacedSelection, last: LayerSequence) -> Tensor | None:
        """(k, K) the new columns whose positions the tokens that stay carry; None where each has its own alone."""
        selection = chosen.selection
        if image.sources is not None:  # K positions of the token that a row stands at are those of the row
            return image.sources[selection.indices]
        if selection.positions is None:
            return None
        return last.columns[image.row][image.places][selection.positions]

    def _select(
        self,
        number: int,
        hidden: Tensor,
        image: ImageSpan,
        found: LLMForwardState,
        last: LayerSequence,
        seen: Tensor,
        ask: Callable[[Tensor | None, AttentionSource], Attention],
    ) -> Selection:
        row, step = image.row, self.steps[number]
        own = found.company(row, last.columns, image.places)
        text = seen[row] > 0
        if own is not None:
            text = text & own
        for other in last.images:
            if other.row == row:
                text = text.index_fill(0, other.places, False)
        real = (seen[row] > 0) if own is None else (seen[row] > 0) & own
        asking = real.nonzero().flatten()[-1:]
        if found.asking is not None:
            told = sequence.gather_mask(found.asking[row : row + 1], last.columns[row : row + 1])[0] > 0
            told = told if own is None else told & own
            asking = told.nonzero().flatten() if own is None or bool(told.any()) else asking
        before = [other for other in last.images if other.row == row and other.number < image.number]
        if own is not None:
            before = [other for other in before if bool(own[other.places].any())]
        # A sample among others is shown as if it stood alone.
        place = own.nonzero().flatten() if own is not None and found.blocks is not None else None
        entered, columns = found.entered[row], last.columns[row]
        whole = next(whole.places for whole in found.images if (whole.number, whole.row) == (image.number, row))
        sequence_, places = hidden[row], image.places
        if place is not None:
            block = (found.blocks[row] == found.blocks[row, whole[0]]).nonzero().flatten()  # ty: ignore[not-subscriptable]
            entered, columns = entered[block], torch.searchsorted(block, columns[place].contiguous())
            whole, sequence_ = torch.searchsorted(block, whole.contiguous()), sequence_[place]
            places, text, asking = (
                torch.searchsorted(place, one.contiguous()) for one in (places, text.nonzero().flatten(), asking)
            )
        else:
            text = text.nonzero().flatten()
        neurons = None
        if isinstance(step.method, NeuronMethod):
            neurons = partial(self._activations, number, image, found, place)
        tokens = LayerTokens(
            features=hidden[row, image.places],
            indices=places,
            layer=number,
            num_layers=len(self.text.layers),
            number=len(before),
            learning=self.text.training and found.asking is not None,
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
        selection = found.decided.get((image.number, number))
        if selection is None:
            selection = step.method(tokens, step.count(len(tokens)))
            found.decided[image.number, number] = selection
        spent = 1000 * (time.perf_counter() - start)
        report = LayerReport(
            str(step), number, len(tokens), len(selection), spent, image.origin[selection.indices].cpu()
        )
        found.reports.setdefault(image.number, []).append(report)
        return selection

    def _activations(
        self, number: int, image: ImageSpan, found: LLMForwardState, sample: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Activations (N, F) of an image in the layer before `number`, and core neurons (c,) of its sample."""
        activations, core = self._neurons.neurons(number, image.row, found, sample)
        return activations[image.places], core

    def _ask(
        self,
        number: int,
        module: Any,
        hidden: Tensor,
        row: int,
        found: LLMForwardState,
        last: LayerSequence,
        kwargs: dict[str, Any],
        made: dict[AttentionSource, tuple[Tensor, Tensor, float]],
    ) -> Callable[[Tensor | None, AttentionSource], Attention]:
        def ask(sample: Tensor | None, asked: AttentionSource) -> Attention:
            segment = number
            if asked == "previous":
                if number - 1 not in found.keys:
                    raise FoveateError(
                        f"{self.steps[number].method.name} asks layer {number - 1} and did not declare it."
                    )
                made[asked] = found.keys[number - 1]
                segment = max((first for first in self.steps if first < number), default=-1)
            elif asked not in made:
                check_at_hand(module)
                rotation = self._rotation(number, hidden, found, last, kwargs["position_embeddings"])
                query, key, scaling = rotated(module.self_attn, module.input_layernorm(hidden), rotation)
                made[asked] = (query, self._with_past(number, found, key), scaling)
            query, key, scaling = made[asked]
            held = torch.cat([found.remembered(segment)[row], found.with_past(last.columns[row])])
            seen = (held >= 0) & (found.seen[row][held.clamp(min=0)] > 0)
            key = key[row, :, : len(held)]  # a static cache has room behind what it holds
            seen = seen[len(held) - key.shape[1] :]  # and a window has forgotten what came first
            if sample is not None:  # packed rows have no cache
                return Attention(query[row][:, sample], key[:, sample], scaling)
            allowed = None
            if found.allowed is not None:
                allowed = sequence.gather_pairs(
                    found.allowed[row : row + 1, None], last.columns[row : row + 1], held[-key.shape[1] :][None]
                )[0, 0]
            return Attention(query[row], key, scaling, None if bool(seen.all()) else seen, allowed)

        return ask

    def _with_past(self, number: int, found: LLMForwardState, key: Tensor) -> Tensor:
        """Keys of a layer with those that its cache holds."""
        held = found.remembered(number).shape[1]
        if not held:
            return key
        return torch.cat([found.cache.layers[number].keys[:, :, :held].to(key), key], dim=2)

    # What a layer is called with

    def _arguments(
        self, number: int, hidden: Tensor, found: LLMForwardState, short: LayerSequence, kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """The arguments of a layer that differ for the shorter sequence."""
        mask, rotation, ids = (kwargs.get(name) for name in ("attention_mask", "position_embeddings", "position_ids"))
        cached = found.cache.layers[number] if found.cache is not None and number < len(found.cache.layers) else None
        room = getattr(cached, "max_cache_len", None)
        window = getattr(self.text.layers[number].self_attn, "sliding_window", None)
        if room is not None and window is not None and self.calls.segment(number) is not None:
            raise FoveateError(
                f"{self.plan} shortens layer {number}, which looks back {window} tokens; a static cache cannot hold "
                "less in such a layer: use a dynamic one."
            )
        key = (id(mask), id(rotation), window, room)
        if key not in short.made:
            made = {
                "attention_mask": self._mask(number, found, short.columns, mask, hidden.dtype, window, room),
                "position_embeddings": self._rotation(number, hidden, found, short, rotation),
            }
            if isinstance(ids, Tensor):
                made["position_ids"] = sequence.gather_positions(ids, short.columns)
            if kwargs.get("cu_seq_lens_q") is not None and found.blocks is not None:
                made |= edges_of(sequence.gather(found.blocks, short.columns))
            # The originals are kept with them: what has their identity must not be something else later.
            short.made[key] = (made, mask, rotation)
        return short.made[key][0]

    def _rotation(
        self, number: int, hidden: Tensor, found: LLMForwardState, short: LayerSequence, rotation: Any
    ) -> Any:
        """Rotary positions of the short sequence."""
        segment = self.calls.segment(number)
        if segment is None:
            return rotation
        contiguous = self.steps[segment].method.positions == "contiguous"
        if self.contiguous is not None:
            contiguous = self.contiguous
        several = [image for image in short.images if image.sources is not None]
        if several and contiguous and found.positions.ndim != 3:
            raise FoveateError(f"{self.plan} gives tokens several positions of the original sequence; leave them so.")
        if several:
            return tuple(self._carried(value, short, several, found) for value in rotation)
        if not contiguous or found.positions.ndim == 3:
            if short.columns.shape[1] == found.length and not short.padded:
                return rotation
            return tuple(_along(value, short.columns) for value in rotation)
        gone = short.gone + found.gone_before(segment)
        ids = sequence.gather_positions(found.positions, short.columns, gone)
        extra = (self.text.config.layer_types[number],) if self._by_type else ()
        return self.text.rotary_emb(hidden, ids, *extra)

    def _carried(self, value: Tensor, short: LayerSequence, several: list[ImageSpan], found: LLMForwardState) -> Tensor:
        """Cosines or sines of the short sequence, where tokens of some images carry several positions."""
        made = _along(value, short.columns).clone()
        for image in several:
            if image.sources is not None:
                made[image.row, image.places] = carry(
                    self.text, value, image.row, image.sources, found.positions.ndim == 3
                )
        return made

    def _mask(
        self,
        number: int,
        found: LLMForwardState,
        columns: Tensor,
        mask: Any,
        dtype: torch.dtype,
        window: int | None,
        room: int | None,
    ) -> Any:
        """The mask of the short sequence, of the same form as the long one's.

        Args:
            number: The layer.
            found: The pass.
            columns: (B, P) of the new columns.
            mask: What the layer would be given.
            dtype: Of the hidden states.
            window: Tokens that the layer looks back at most, itself included; None: all.
            room: Entries that a cache of fixed size has; None: it grows.
        """
        held = found.remembered(self.calls.segment(number))
        if window is not None:
            held = held[:, max(held.shape[1] - window + 1, 0) :]  # a window forgets
        keys = torch.cat([held, found.with_past(columns)], dim=1)
        if mask is None:
            return None if bool((keys >= 0).all()) else self._causal(found, columns, keys, window, dtype)
        if not isinstance(mask, Tensor):
            raise FoveateError(f"{self.plan} cannot be followed with masks of type {type(mask).__name__}.")
        # The mask of a layer with a window begins later than the sequence.
        offset = 0 if room is not None and window is None else max(found.seen.shape[1] - mask.shape[-1], 0)
        places = torch.where(keys < offset, -1, keys - offset)
        if mask.ndim == 2:
            return sequence.gather_mask(mask, places)
        short = sequence.gather_pairs(mask, columns, places)
        least = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        return short if room is None else F.pad(short, (0, room - short.shape[-1]), value=least)

    def _causal(
        self, found: LLMForwardState, columns: Tensor, keys: Tensor, window: int | None, dtype: torch.dtype
    ) -> Tensor:
        """A causal mask where the model itself needed none, and padding now asks for one."""
        kind = compat.attention_name(self.text.config)
        if "flash" in kind:
            return (keys >= 0).long()
        queries = torch.where(columns < 0, -1, columns + found.past)
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
