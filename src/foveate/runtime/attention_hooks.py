"""Hooks for methods that change attention: wrappers of the attention function.

`foveate.runtime.attention_functions` installs the wrappers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from threading import local
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate import compat
from foveate.core.attention import may_attend
from foveate.core.errors import FoveateError
from foveate.core.in_attention import (
    AttentionInputs,
    AttentionMethod,
    DecodeStepMethod,
    MaskMethod,
    SparseMethod,
)
from foveate.core.plan import Step
from foveate.kv_cache import MixedLayer
from foveate.runtime.attention_functions import AttentionCall, wrap_attention
from foveate.runtime.forward_state import CurrentCalls, LLMForwardState
from foveate.runtime.patches import Patches


def _at(states: Tensor, places: Tensor) -> Tensor:
    """States (B, H, n, d) at positions (B, p)."""
    index = places[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3])
    return states.gather(2, index)


@dataclass(frozen=True)
class Keys:
    """Types of the keys of a layer.

    Args:
        visual: (B, n) bool, visual tokens; new keys come last.
        text: (B, n) bool, text tokens. Padding is neither.
    """

    visual: Tensor
    text: Tensor

    def of(self, count: int) -> Keys:
        """The last `count` keys of a layer with a window, or padded to the `count` keys of a static cache."""
        return Keys(_fit(self.visual, count, False), _fit(self.text, count, False))


class AttentionHooks:
    """Wrappers around the attention of layers, while attached.

    Args:
        calls: The calls of the language model in progress.
        steps: Steps with an `AttentionMethod`, by layer.
    """

    def __init__(self, calls: CurrentCalls, steps: dict[int, Step[AttentionMethod]]) -> None:
        self.calls = calls
        self.steps = steps
        #: The first layer of the step of every layer, of steps that choose cached tokens for every one after a prompt.
        self._first: dict[int, int] = {}
        for number, step in steps.items():
            if isinstance(step.method, DecodeStepMethod):
                self._first[number] = next(first for first, other in steps.items() if other is step)
        self._local = local()

    def attach(self, patches: Patches) -> None:
        """Install the wrappers, until `patches` are undone."""
        for first in sorted(set(self._first.values())):
            measured = self.calls.text.layers[first - 1].self_attn
            patches.before(measured, partial(self._begin, first - 1), with_kwargs=True)
            patches.after(measured, self._end, always_call=True)
            method: Any = self.steps[first].method
            wrap_attention(patches, measured, partial(self._measure, first, method))
        for number, step in self.steps.items():
            # Not on the layer: where it is recomputed for its gradient, only the hooks of its submodules run.
            attention = self.calls.text.layers[number].self_attn
            patches.before(attention, partial(self._begin, number), with_kwargs=True)
            patches.after(attention, self._end, always_call=True)
            wrap_attention(patches, attention, partial(self._attend, number, step.method))

    def _begin(self, number: int, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        state = self._local.state = self.calls.state_for_layer(kwargs)
        self._local.quantised_layer = None
        if state is None or state.cache is None or state.images or number >= len(state.cache.layers):
            return
        layer = state.cache.layers[number]
        hidden = args[0] if args else kwargs["hidden_states"]
        if isinstance(layer, MixedLayer):
            layer.skip_decoding = bool(layer.chunks) and hidden.shape[1] == 1
            self._local.quantised_layer = layer if layer.skip_decoding else None

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        self._local.state = None

    def _attend(self, number: int, method: AttentionMethod, call: AttentionCall) -> Any:
        state: LLMForwardState | None = getattr(self._local, "state", None)
        if state is None:
            return call.attend()
        layer: MixedLayer | None = self._local.quantised_layer
        if layer is not None:
            self._local.quantised_layer, layer.skip_decoding = None, False
            return self._attend_quantised(layer, call)
        if "flex" in call.name:
            raise FoveateError(
                f"{method.name} changes attention, which works with eager, sdpa and flash attention, not with flex."
            )
        if isinstance(method, MaskMethod):
            return self._mask(number, method, state, call)
        if isinstance(method, SparseMethod):
            return self._sparse(number, method, state, call) if state.images else call.attend()
        if isinstance(method, DecodeStepMethod):
            return self._attend_chosen(number, state, call)
        raise TypeError(f"{type(method).__name__} is neither a MaskMethod, a SparseMethod nor a DecodeStepMethod")

    def _columns(self, number: int, state: LLMForwardState) -> Tensor:
        """(B, n) columns of all keys of a layer, without a window or static cache; -1 for padding."""
        cached, layer_sequence = state.cached_columns(self.calls.segment(number)), self.calls.sequence_of(number, state)
        return torch.cat([cached, state.with_past(layer_sequence.columns)], dim=1)

    def _keys(self, number: int, state: LLMForwardState) -> Keys:
        """Types of all keys of a layer, without a window or static cache."""
        cached, layer_sequence = state.cached_columns(self.calls.segment(number)), self.calls.sequence_of(number, state)
        cached_visual = torch.zeros_like(cached, dtype=torch.bool)
        if state.cache_state is not None and cached.shape[1]:
            cached_visual = state.cache_state.visual.gather(1, cached.clamp(min=0)) & (cached >= 0)
        new_visual = torch.zeros_like(layer_sequence.columns, dtype=torch.bool)
        for image in layer_sequence.images:
            new_visual[image.row, image.places] = True
        columns = self._columns(number, state)
        visual = torch.cat([cached_visual, new_visual], dim=1)
        real = (state.padding_mask.gather(1, columns.clamp(min=0)) > 0) & (columns >= 0)
        return Keys(visual & real, ~visual & real)

    def _attention_inputs(
        self, number: int, row: int, query: Tensor, key: Tensor, scaling: float, allowed: Tensor, keys: Keys
    ) -> AttentionInputs:
        layers = len(self.calls.text.layers)
        visual, text = keys.visual[row], keys.text[row]
        return AttentionInputs(query[row], key[row], scaling, allowed[row], visual, text, number, layers)

    def _samples(
        self, number: int, row: int, state: LLMForwardState, inputs: AttentionInputs
    ) -> list[tuple[Any, AttentionInputs]]:
        """Positions (n,) and inputs of each sample of a row, as if it were alone; all where the row is one."""
        places_of = state.samples(row, self.calls.sequence_of(number, state).columns[row])
        if places_of is None:
            return [(slice(None), inputs)]
        samples_inputs = []
        for places in places_of:
            allowed = inputs.allowed[places][:, places]
            kinds = inputs.visual[places], inputs.text[places]
            states = inputs.query[:, places], inputs.key[:, places]
            samples_inputs.append(
                (places, AttentionInputs(*states, inputs.scaling, allowed, *kinds, number, inputs.num_layers))
            )
        return samples_inputs

    # Sparse attention

    def _sparse(self, number: int, method: SparseMethod, state: LLMForwardState, call: AttentionCall) -> Any:
        keys = self._keys(number, state)
        length, total = call.query.shape[2], keys.visual.shape[1]
        past = total - length
        allowed = call.allowed()
        grows = call.key.shape[2] == total
        active, num_generated = self._active_tokens(number, method, state, call, keys, allowed)
        real = (keys.visual | keys.text)[:, past:]
        prompt_length = length - num_generated
        if bool((active | ~real)[:, :prompt_length].all()):
            output = call.attend()
        elif grows:
            output = (self._attend_active(call, allowed, active, prompt_length), None)
        else:  # with a window or a static cache: the same result, computed on all pairs
            columns = Keys(F.pad(active, (past, 0), value=True), real).of(call.key.shape[2]).visual
            allowed_pairs = allowed & (
                columns[:, None] | (torch.arange(length, device=columns.device) >= prompt_length)[:, None]
            )
            allowed_pairs |= ~allowed_pairs.any(
                dim=2, keepdim=True
            )  # inactive rows attend to something: empty rows would be NaN
            output = call.attend_pairs(allowed_pairs)[0]
            output = (output * active[:, :, None, None].to(output.dtype), None)
        cache = state.cache
        if cache is not None:
            self._store(number, method, cache, active, real)
        return output

    def _attend_quantised(self, layer: MixedLayer, call: AttentionCall) -> Any:
        """Attention of one generated token to a quantised cache, without decoding it where possible."""
        total, visible = layer.get_seq_length(), None
        if call.mask is not None:
            mask = call.mask[:, 0, -1, :total] if call.mask.ndim == 4 else call.mask[:, -total:]
            visible = may_attend(mask).expand(len(call.query), -1)
        plain = all(call.options.get(name) is None for name in ("sliding_window", "softcap", "s_aux"))
        output = layer.attend(call.query, call.scaling, visible) if plain else None
        if output is not None:
            return output, None
        keys, values = layer.read()
        return call.attend(key=keys, value=values)

    def _active_tokens(
        self,
        number: int,
        method: SparseMethod,
        state: LLMForwardState,
        call: AttentionCall,
        keys: Keys,
        allowed: Tensor,
    ) -> tuple[Tensor, int]:
        """(B, L) active new tokens; and, without a cache, the number of tokens generated since they were decided."""
        length, total = call.query.shape[2], keys.visual.shape[1]
        missing = total - call.key.shape[2]
        key = F.pad(call.key, (0, 0, missing, 0)) if missing > 0 else call.key[:, :, :total]
        full_allowed = F.pad(allowed, (missing, 0)) if missing > 0 else allowed[:, :, :total]
        active = torch.zeros(len(allowed), length, dtype=torch.bool, device=key.device)
        num_generated = 0
        with torch.no_grad():
            for row in range(len(allowed)):
                decision = state.decisions.get((-1 - row, number))
                if decision is None:
                    inputs = self._attention_inputs(number, row, call.query, key, call.scaling, full_allowed, keys)
                    decision = torch.zeros(length, dtype=torch.bool, device=key.device)
                    for sample, sample_inputs in self._samples(number, row, state, inputs):
                        # Samples of text alone are read as without a plan.
                        decision[sample] = (
                            method.active_tokens(sample_inputs) if bool(sample_inputs.visual.any()) else True
                        )
                    state.decisions[-1 - row, number] = decision
                num_generated = length - len(decision)
                active[row, : len(decision)] = decision
        active[:, length - num_generated :] = True
        return active, num_generated

    def _attend_active(self, call: AttentionCall, allowed: Tensor, active: Tensor, prompt_length: int) -> Tensor:
        """Attention among the active tokens of the prompt, and of generated tokens to everything."""
        length, past = call.query.shape[2], call.key.shape[2] - call.query.shape[2]
        attending = active.clone()
        attending[:, prompt_length:] = False
        count = int(attending.sum(dim=1).max())
        order = attending.to(torch.uint8).argsort(dim=1, stable=True)[:, length - count :]
        padding = ~attending.gather(1, order)
        columns = torch.cat([torch.arange(past, device=order.device).expand(len(order), -1), order + past], dim=1)
        active_call = replace(
            call, query=_at(call.query, order), key=_at(call.key, columns), value=_at(call.value, columns)
        )
        if call.mask is None and past == 0 and not bool(padding.any()):
            attended = active_call.attend()[0]
        else:
            rows = torch.arange(len(order), device=order.device)[:, None, None]
            allowed_pairs = allowed[rows, order[:, :, None], columns[:, None]]
            allowed_pairs = allowed_pairs & ~F.pad(padding, (past, 0))[:, None] | padding[:, :, None]
            attended = active_call.attend_pairs(allowed_pairs)[0]
        output = attended.new_zeros(len(attended), length, *attended.shape[2:])
        row, place = (~padding).nonzero(as_tuple=True)
        output = output.index_put((row, order[row, place]), attended[row, place])
        if prompt_length < length:
            generated = replace(call, query=call.query[:, :, prompt_length:]).attend_pairs(allowed[:, prompt_length:])[
                0
            ]
            output = torch.cat([output[:, :prompt_length], generated], dim=1)
        return output

    def _store(self, number: int, method: SparseMethod, cache: Any, active: Tensor, real: Tensor) -> None:
        """Quantise a layer of a cache."""
        layer = cache.layers[number]
        if compat.is_plain_dynamic_layer(layer) and not compat.is_offloaded(cache):
            layer = cache.layers[number] = MixedLayer(layer, method.bits, method.residual)
        if isinstance(layer, MixedLayer):
            layer.store(active, real)

    # Masked attention

    def _mask(self, number: int, method: MaskMethod, state: LLMForwardState, call: AttentionCall) -> Any:
        cache_state, allowed = state.cache_state, call.allowed()
        keys = self._keys(number, state)
        total, length = keys.visual.shape[1], call.query.shape[2]
        memory = None if cache_state is None else cache_state.memory.get(number)
        # Aligned with the keys of a layer without a window or static cache.
        missing = total - call.key.shape[2]
        key = F.pad(call.key, (0, 0, missing, 0)) if missing > 0 else call.key[:, :, :total]
        full_allowed = F.pad(allowed, (missing, 0)) if missing > 0 else allowed[:, :, :total]
        hidden_pairs, memories = [], []
        with torch.no_grad():
            for row in range(len(allowed)):
                inputs = self._attention_inputs(number, row, call.query, key, call.scaling, full_allowed, keys)
                samples = self._samples(number, row, state, inputs)
                if len(samples) == 1:
                    pairs, row_memory = method.attention_mask(inputs, None if memory is None else memory[row])
                else:  # packed rows have no cache and no memory
                    pairs, row_memory = torch.zeros_like(inputs.allowed), inputs.key.new_zeros(0)
                    for sample, sample_inputs in samples:
                        pairs[sample[:, None], sample] = method.attention_mask(sample_inputs, None)[0]
                hidden_pairs.append(pairs)
                memories.append(row_memory)
        if cache_state is not None and state.cache is not None:
            cache_state.memory[number] = memories
        pairs = torch.stack(hidden_pairs)
        if not bool(pairs.any()):
            return call.attend()
        pairs = pairs[:, :, missing:] if missing > 0 else F.pad(pairs, (0, -missing))
        assert pairs.shape[1] == length
        return call.attend_pairs(allowed & ~pairs)

    # Attention to chosen cached tokens

    @torch.no_grad()
    def _measure(self, first: int, method: DecodeStepMethod, call: AttentionCall) -> Any:
        """Choose what tokens after a prompt attend to from layer `first` on, in the attention of the layer before."""
        state: LLMForwardState | None = getattr(self._local, "state", None)
        if state is None or state.cache_state is None:
            return call.attend()
        if state.images:
            state.cache_state.choices.setdefault(first, [()] * len(call.query))
        if state.images or not bool(state.cache_state.visual.any()):
            return call.attend()
        length, total = call.query.shape[2], call.key.shape[2]
        keys, columns = self._keys(first - 1, state).of(total), _fit(self._columns(first - 1, state), total, -1)
        allowed = call.allowed()
        unattended = torch.zeros(
            len(allowed), length, state.padding_mask.shape[1], dtype=torch.bool, device=keys.text.device
        )
        known, choices = state.cache_state.choices.get(first, [()] * len(allowed)), []
        for row in range(len(allowed)):
            inputs = self._attention_inputs(first - 1, row, call.query, call.key, call.scaling, allowed, keys)
            image = (keys.visual[row] & allowed[row, -1]).nonzero().flatten()
            attention = inputs.rows(torch.arange(length, device=image.device))[:, image]
            # Choices among other tokens: another image came, or a part of one left a window.
            before = known[row] if known[row] and known[row][-1].attention.shape[1] == len(image) else ()
            choice = method.choose(attention, before[-1] if before else None)
            unattended[row][:, columns[row, image]] = ~choice.attended
            choices.append((*before, choice))
        state.cache_state.choices[first] = choices
        state.unattended[first] = unattended
        return call.attend()

    def _attend_chosen(self, number: int, state: LLMForwardState, call: AttentionCall) -> Any:
        """Attention of tokens after a prompt to the text and to the chosen tokens of images."""
        unattended = state.unattended.get(self._first[number])
        if unattended is None or not bool(unattended.any()):
            return call.attend()
        length, total, columns = call.query.shape[2], call.key.shape[2], self._columns(number, state)
        left_out = unattended.gather(2, columns.clamp(min=0)[:, None].expand(-1, length, -1))
        attended = _fit((columns >= 0)[:, None] & ~left_out, total, False)
        if length > 1:
            return call.attend_pairs(call.allowed() & attended)
        attended = attended[:, 0]
        count = int(attended.sum(dim=1).max())
        order = attended.to(torch.uint8).argsort(dim=1, stable=True)[:, total - count :]
        allowed = (call.allowed()[:, 0] & attended).gather(1, order)
        chosen = replace(call, key=_at(call.key, order), value=_at(call.value, order), mask=None)
        return chosen.attend() if bool(allowed.all()) else chosen.attend_pairs(allowed[:, None])


def _fit(values: Tensor, count: int, fill: int | bool) -> Tensor:
    """Values (..., n) of all keys for the last `count` of a layer with a window, or the `count` of a static cache."""
    missing = count - values.shape[-1]
    return F.pad(values, (0, missing), value=fill) if missing > 0 else values[..., -count:]
