"""Decode-time pruning of MLP neurons.

While a prompt with images is read, the core neurons of the MLPs are determined. Generated tokens then use
copies of these neurons' weights, which are smaller matrices. The copies belong to the cache, row by row.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.core import sequence
from foveate.core.errors import FoveateError, Refusal
from foveate.core.in_mlp import NeuronMethod
from foveate.runtime.forward_state import CurrentCalls, LLMForwardState
from foveate.runtime.patches import Patches


class NeuronSlice:
    """A subset of the neurons of an MLP.

    Args:
        neurons: (c,) int64, ascending.
    """

    def __init__(self, neurons: Tensor) -> None:
        self.neurons = neurons
        self._weights: list[tuple[Tensor, Tensor | None]] | None = None

    def forward(self, mlp: Any, hidden: Tensor) -> Tensor:
        """Output of the MLP for (..., D) with these neurons alone; the weights are copied at the first call."""
        if self._weights is None:
            gate, up = _gate_and_up(mlp)
            down = mlp.down_proj
            self._weights = [
                *((weight[self.neurons], None if bias is None else bias[self.neurons]) for weight, bias in (gate, up)),
                (down.weight[:, self.neurons].contiguous(), down.bias),
            ]
        gate, up, down = self._weights
        return F.linear(_activation(mlp)(F.linear(hidden, *gate)) * F.linear(hidden, *up), *down)


def has_plain_matrices(mlp: Any) -> bool:
    """Whether the matrices of an MLP are plain ones, whose rows and columns can be sliced.

    Where they are wrapped or replaced (adapters, quantisation, hooks that load weights from the
    disk), the MLP itself must be called, and neurons are masked instead.
    """
    names = ("gate_up_proj",) if hasattr(mlp, "gate_up_proj") else ("gate_proj", "up_proj")
    # The last one has our own hook, which masks neurons.
    return all(_is_plain(getattr(mlp, name, None)) for name in names) and _is_plain(mlp.down_proj, own_hooks=1)


def _is_plain(linear: Any, own_hooks: int = 0) -> bool:
    """Whether a module is a linear layer with its weights in memory, and without hooks of others."""
    return (
        type(linear) is nn.Linear
        and type(linear.weight) is nn.Parameter
        and not linear.weight.is_meta
        and "forward" not in vars(linear)
        and len(linear._forward_pre_hooks) <= own_hooks
        and not linear._forward_hooks
    )


def _gate_and_up(mlp: Any) -> list[tuple[Tensor, Tensor | None]]:
    """Weight and bias of the gate and of the up projection."""
    if not hasattr(mlp, "gate_up_proj"):
        return [(part.weight, part.bias) for part in (mlp.gate_proj, mlp.up_proj)]
    both = mlp.gate_up_proj
    biases = (None, None) if both.bias is None else both.bias.chunk(2)
    return list(zip(both.weight.chunk(2), biases, strict=True))


def _activation(mlp: Any) -> Callable[[Tensor], Tensor]:
    return mlp.act_fn if hasattr(mlp, "act_fn") else mlp.activation_fn


class MLPHooks:
    """Hooks that determine the core neurons of a language model's MLPs and slice them, while attached.

    Args:
        calls: The calls of the language model in progress.
        methods: By the layer before which they select tokens.
    """

    def __init__(self, calls: CurrentCalls, methods: dict[int, NeuronMethod]) -> None:
        self.calls = calls
        self.methods = methods

    def attach(self, patches: Patches) -> None:
        """Install the hooks, until `patches` are undone."""
        for number, layer in enumerate(self.calls.text.layers):
            method = next((self.methods[at] for at in sorted(self.methods, reverse=True) if at - 1 <= number), None)
            if method is None:
                continue
            mlp: Any = getattr(layer, "mlp", None)
            if not hasattr(mlp, "down_proj"):
                raise FoveateError(
                    Refusal(
                        "needs-mlp-neurons",
                        f"{method.name} needs an MLP in every layer, and layer {number} has none",
                    )
                )
            last = mlp.down_proj
            patches.before(last, partial(self._down_proj_hook, number, method))
            if "forward" not in vars(mlp):  # a replaced forward cannot be sliced: neurons are masked
                patches.wrap(mlp, "forward", partial(self._forward, number, mlp))

    def neurons(
        self, number: int, row: int, state: LLMForwardState, sample: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Activations (L, F) of a row in the layer before `number`, and its core neurons (c,).

        With `sample` (n,), positions of one of its samples, those of that sample alone.
        """
        activations = state.activations[number - 1]
        if sample is not None:
            return activations[row], self.methods[number].core(activations[row, sample])
        return activations[row], self._core(number - 1, row, self.methods[number], state, activations)

    def drop_activations(self, number: int, state: LLMForwardState) -> None:
        """Drop the activations that layer `number` needed."""
        state.activations.pop(number - 1, None)

    def _core(self, number: int, row: int, method: NeuronMethod, state: LLMForwardState, activations: Tensor) -> Tensor:
        """Core neurons of a row at a layer, as decided for the prompt."""
        decision = state.decisions.get((-1 - row, -1 - number))
        if decision is None:
            columns = self.calls.sequence_of(number, state).columns
            real = sequence.gather_mask(state.padding_mask[:, state.past :], columns)[row] > 0
            with torch.no_grad():
                decision = method.core(activations[row, real]), activations.shape[1]
            state.decisions[-1 - row, -1 - number] = decision
        return decision[0]

    def _down_proj_hook(self, number: int, method: NeuronMethod, module: nn.Module, args: tuple[Tensor, ...]) -> Any:
        """Hook before the down projection: determine core neurons in the prompt, mask the others in generated text."""
        state, (activations,) = self.calls.current, args
        if state is None:
            return None
        if not state.images:
            neuron_slices = self._neuron_slices(number, state, activations)
            return (
                None
                if neuron_slices is None
                else (self._masked(activations, [neuron_slice.neurons for neuron_slice in neuron_slices], 0),)
            )
        if number + 1 in self.methods:
            state.activations[number] = activations.detach()
        if self.calls.text.training and torch.is_grad_enabled():
            return None  # nothing is generated after it
        core = [self._core(number, row, method, state, activations) for row in range(len(activations))]
        if state.cache is not None and state.cache_state is not None:
            slices: list[NeuronSlice] = []
            for neurons in core:  # copies of a prompt, for beams or several answers, share one
                same = (neuron_slice for neuron_slice in slices if torch.equal(neuron_slice.neurons, neurons))
                slices.append(next(same, None) or NeuronSlice(neurons))
            state.cache_state.neurons[number] = slices
        prompt = state.decisions[-1, -1 - number][1]
        return (self._masked(activations, core, prompt),) if prompt < activations.shape[1] else None

    def _masked(self, activations: Tensor, core: list[Tensor], start: int) -> Tensor:
        """Zero the activations of other neurons, from a position on."""
        stays = torch.zeros(len(activations), 1, activations.shape[2], dtype=torch.bool, device=activations.device)
        for row, neurons in enumerate(core):
            stays[row, 0, neurons] = True
        return torch.cat([activations[:, :start], activations[:, start:] * stays], dim=1)

    def _neuron_slices(self, number: int, state: LLMForwardState, hidden: Tensor) -> list[NeuronSlice] | None:
        """The slices of all rows where text is being generated, None elsewhere."""
        if state.images or state.cache_state is None or (hidden.shape[1] > 1 and not state.cache_state.has_drafts):
            return None
        return state.cache_state.neurons.get(number)

    def _forward(self, number: int, mlp: Any, original: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
        state = self.calls.current
        neuron_slices = None if state is None else self._neuron_slices(number, state, hidden)
        if neuron_slices is None or not has_plain_matrices(mlp):
            return original(hidden)
        if all(neuron_slice is neuron_slices[0] for neuron_slice in neuron_slices):
            return neuron_slices[0].forward(mlp, hidden)
        return torch.cat(
            [neuron_slice.forward(mlp, hidden[row : row + 1]) for row, neuron_slice in enumerate(neuron_slices)]
        )
