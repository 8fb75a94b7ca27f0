"""Hooks for methods that change what is attended to: they stand around the function that attends.

How they come to stand there is told in `foveate.runtime.attention_functions`.
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
from foveate.core.in_attention import AttentionInputs, AttentionMethod, MaskMethod, SparseMethod
from foveate.core.plan import Step
from foveate.kv_cache import MixedLayer
from foveate.runtime.attention_functions import AttentionCall, wrap_attention
from foveate.runtime.forward_state import CurrentCalls, LLMForwardState
from foveate.runtime.patches import Patches


def _at(states: Tensor, places: Tensor) -> Tensor:
    """States (B, H, n, d) at places (B, p)."""
    index = places[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3])
    return states.gather(2, index)


@dataclass(frozen=True)
class Keys:
    """What the keys of a layer are.

    Args:
        visual: (B, n) bool, of an image; the new ones last.
        text: (B, n) bool, of text. Padding is neither.
    """

    visual: Tensor
    text: Tensor

    def of(self, count: int) -> Keys:
        """The keys of a layer that holds `count`: less where it has a window, more where it has room to grow."""
        short = count - self.visual.shape[1]
        return Keys(*(F.pad(kind, (0, short)) if short > 0 else kind[:, -count:] for kind in (self.visual, self.text)))


class AttentionHooks:
    """Stands around the attention of layers, while attached.

    Args:
        calls: The calls of the language model, which know the sequence of each layer.
        steps: Steps with an `AttentionMethod`, by layer.
    """

    def __init__(self, calls: CurrentCalls, steps: dict[int, Step[AttentionMethod]]) -> None:
        self.calls = calls
        self.steps = steps
        self._local = local()

    def attach(self, patches: Patches) -> None:
        """Install everything, until `patches` are undone."""
        for number, step in self.steps.items():
            # Not on the layer: where it runs again for its gradient, only the hooks of what is in it do.
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
            raise FoveateError(f"{method.name} changes attention, which works with eager, sdpa and flash, not flex.")
        if isinstance(method, MaskMethod):
            return self._mask(number, method, state, call)
        if isinstance(method, SparseMethod):
            return self._sparse(number, method, state, call) if state.images else call.attend()
        raise TypeError(f"{type(method).__name__} does nothing that is known here")

    def _keys(self, number: int, state: LLMForwardState) -> Keys:
        """What all keys of a layer are, had it no window and no room."""
        held, short = state.cached_columns(self.calls.segment(number)), self.calls.sequence_of(number, state)
        before = torch.zeros_like(held, dtype=torch.bool)
        if state.cache_state is not None and held.shape[1]:
            before = state.cache_state.visual.gather(1, held.clamp(min=0)) & (held >= 0)
        new = torch.zeros_like(short.columns, dtype=torch.bool)
        for image in short.images:
            new[image.row, image.places] = True
        places = torch.cat([held, state.with_past(short.columns)], dim=1)
        visual = torch.cat([before, new], dim=1)
        seen = (state.padding_mask.gather(1, places.clamp(min=0)) > 0) & (places >= 0)
        return Keys(visual & seen, ~visual & seen)

    def _attention_inputs(
        self, number: int, row: int, query: Tensor, key: Tensor, scaling: float, allowed: Tensor, keys: Keys
    ) -> AttentionInputs:
        layers = len(self.calls.text.layers)
        visual, text = keys.visual[row], keys.text[row]
        return AttentionInputs(query[row], key[row], scaling, allowed[row], visual, text, number, layers)

    def _samples(
        self, number: int, row: int, state: LLMForwardState, inputs: AttentionInputs
    ) -> list[tuple[Any, AttentionInputs]]:
        """The samples of a row, each as if it stood alone: its places (n,), all of them where the row is one."""
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

    # Letting some tokens attend

    def _sparse(self, number: int, method: SparseMethod, state: LLMForwardState, call: AttentionCall) -> Any:
        keys = self._keys(number, state)
        length, total = call.query.shape[2], keys.visual.shape[1]
        past = total - length
        allowed = call.allowed()
        grows = call.key.shape[2] == total
        active, written = self._active_tokens(number, method, state, call, keys, allowed)
        real = (keys.visual | keys.text)[:, past:]
        prompt = length - written
        if bool((active | ~real)[:, :prompt].all()):
            output = call.attend()
        elif grows:
            output = (self._attend_active(call, allowed, active, prompt), None)
        else:  # a window has forgotten, or a static cache has room behind: the same, at the price of all pairs
            columns = Keys(F.pad(active, (past, 0), value=True), real).of(call.key.shape[2]).visual
            seen = allowed & (columns[:, None] | (torch.arange(length, device=columns.device) >= prompt)[:, None])
            seen |= ~seen.any(dim=2, keepdim=True)  # rows that pass by see something, or are no number
            output = call.attend_pairs(seen)[0]
            output = (output * active[:, :, None, None].to(output.dtype), None)
        cache = state.cache
        if cache is not None:
            self._store(number, method, cache, active, real)
        return output

    def _attend_quantised(self, layer: MixedLayer, call: AttentionCall) -> Any:
        """Attention of one written token to a cache in few bits, which is not decoded where that can be."""
        total, seen = layer.get_seq_length(), None
        if call.mask is not None:
            mask = call.mask[:, 0, -1, :total] if call.mask.ndim == 4 else call.mask[:, -total:]
            seen = may_attend(mask).expand(len(call.query), -1)
        plain = all(call.options.get(name) is None for name in ("sliding_window", "softcap", "s_aux"))
        output = layer.attend(call.query, call.scaling, seen) if plain else None
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
        """(B, L) which new tokens attend; and how many were written since that was decided, without a cache."""
        length, total = call.query.shape[2], keys.visual.shape[1]
        missing = total - call.key.shape[2]
        key = F.pad(call.key, (0, 0, missing, 0)) if missing > 0 else call.key[:, :, :total]
        wide = F.pad(allowed, (missing, 0)) if missing > 0 else allowed[:, :, :total]
        active = torch.zeros(len(allowed), length, dtype=torch.bool, device=key.device)
        written = 0
        with torch.no_grad():
            for row in range(len(allowed)):
                before = state.decisions.get((-1 - row, number))
                if before is None:
                    inputs = self._attention_inputs(number, row, call.query, key, call.scaling, wide, keys)
                    before = torch.zeros(length, dtype=torch.bool, device=key.device)
                    for sample, own in self._samples(number, row, state, inputs):
                        # Text alone is read as it is where no image is in the batch.
                        before[sample] = method.active_tokens(own) if bool(own.visual.any()) else True
                    state.decisions[-1 - row, number] = before
                written = length - len(before)
                active[row, : len(before)] = before
        active[:, length - written :] = True
        return active, written

    def _attend_active(self, call: AttentionCall, allowed: Tensor, active: Tensor, prompt: int) -> Tensor:
        """Attention of the tokens of the prompt that attend to each other, and of what was written to everything."""
        length, past = call.query.shape[2], call.key.shape[2] - call.query.shape[2]
        attending = active.clone()
        attending[:, prompt:] = False
        count = int(attending.sum(dim=1).max())
        order = attending.to(torch.uint8).argsort(dim=1, stable=True)[:, length - count :]
        padding = ~attending.gather(1, order)
        columns = torch.cat([torch.arange(past, device=order.device).expand(len(order), -1), order + past], dim=1)
        short = replace(call, query=_at(call.query, order), key=_at(call.key, columns), value=_at(call.value, columns))
        if call.mask is None and past == 0 and not bool(padding.any()):
            attended = short.attend()[0]
        else:
            rows = torch.arange(len(order), device=order.device)[:, None, None]
            seen = allowed[rows, order[:, :, None], columns[:, None]]
            seen = seen & ~F.pad(padding, (past, 0))[:, None] | padding[:, :, None]
            attended = short.attend_pairs(seen)[0]
        output = attended.new_zeros(len(attended), length, *attended.shape[2:])
        row, place = (~padding).nonzero(as_tuple=True)
        output = output.index_put((row, order[row, place]), attended[row, place])
        if prompt < length:
            rest = replace(call, query=call.query[:, :, prompt:]).attend_pairs(allowed[:, prompt:])[0]
            output = torch.cat([output[:, :prompt], rest], dim=1)
        return output

    def _store(self, number: int, method: SparseMethod, cache: Any, active: Tensor, real: Tensor) -> None:
        """Let a layer of a cache hold few bits."""
        layer = cache.layers[number]
        if compat.is_plain_dynamic_layer(layer) and not compat.is_offloaded(cache):
            layer = cache.layers[number] = MixedLayer(layer, method.bits, method.residual)
        if isinstance(layer, MixedLayer):
            layer.store(active, real)

    # Hiding pairs

    def _mask(self, number: int, method: MaskMethod, state: LLMForwardState, call: AttentionCall) -> Any:
        kept, allowed = state.cache_state, call.allowed()
        keys = self._keys(number, state)
        total, length = keys.visual.shape[1], call.query.shape[2]
        memory = None if kept is None else kept.memory.get(number)
        # Counted as in a layer without a window and without room behind what it holds.
        missing = total - call.key.shape[2]
        key = F.pad(call.key, (0, 0, missing, 0)) if missing > 0 else call.key[:, :, :total]
        wide = F.pad(allowed, (missing, 0)) if missing > 0 else allowed[:, :, :total]
        hidden, remembered = [], []
        with torch.no_grad():
            for row in range(len(allowed)):
                inputs = self._attention_inputs(number, row, call.query, key, call.scaling, wide, keys)
                samples = self._samples(number, row, state, inputs)
                if len(samples) == 1:
                    pairs, after = method.attention_mask(inputs, None if memory is None else memory[row])
                else:  # packed rows have no cache, and nothing to remember
                    pairs, after = torch.zeros_like(inputs.allowed), inputs.key.new_zeros(0)
                    for sample, own in samples:
                        pairs[sample[:, None], sample] = method.attention_mask(own, None)[0]
                hidden.append(pairs)
                remembered.append(after)
        if kept is not None and state.cache is not None:
            kept.memory[number] = remembered
        pairs = torch.stack(hidden)
        if not bool(pairs.any()):
            return call.attend()
        pairs = pairs[:, :, missing:] if missing > 0 else F.pad(pairs, (0, -missing))
        assert pairs.shape[1] == length
        return call.attend_pairs(allowed & ~pairs)
