"""MLPs of which written text uses some neurons only.

While a prompt with images is read, the MLPs are asked which neurons matter to it. What is written after it goes through
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


class Sliced:
    """Some neurons of an MLP.

    Args:
        neurons: (c,) int64, ascending.
    """

    def __init__(self, neurons: Tensor) -> None:
        self.neurons = neurons
        self._weights: list[tuple[Tensor, Tensor | None]] | None = None

    def forward(self, mlp: Any, hidden: Tensor) -> Tensor:
        """What the MLP makes of (..., D) with these neurons alone; the weights are copied at the first call."""
        if self._weights is None:
            gate, up = _inner(mlp)
            down = mlp.down_proj
            self._weights = [
                *((weight[self.neurons], None if bias is None else bias[self.neurons]) for weight, bias in (gate, up)),
                (down.weight[:, self.neurons].contiguous(), down.bias),
            ]
        gate, up, down = self._weights
        return F.linear(_activation(mlp)(F.linear(hidden, *gate)) * F.linear(hidden, *up), *down)


def sliceable(mlp: Any) -> bool:
    """Whether the matrices of an MLP are plain ones that are all it is made of: rows and columns can be taken of them.

    Where something else stands in their way or around them (adapters, quantisation, hooks that bring weights from the
    disk), the MLP itself must be called, and neurons are masked.
    """
    names = ("gate_up_proj",) if hasattr(mlp, "gate_up_proj") else ("gate_proj", "up_proj")
    # The last one has our own hook, which masks.
    return all(_is_plain(getattr(mlp, name, None)) for name in names) and _is_plain(mlp.down_proj, own_hooks=1)


def _is_plain(linear: Any, own_hooks: int = 0) -> bool:
    """Whether a module is a matrix with its weights at hand, and calling it does nothing but multiply by them."""
    return (
        type(linear) is nn.Linear
        and type(linear.weight) is nn.Parameter
        and not linear.weight.is_meta
        and "forward" not in vars(linear)
        and len(linear._forward_pre_hooks) <= own_hooks
        and not linear._forward_hooks
    )


def _inner(mlp: Any) -> list[tuple[Tensor, Tensor | None]]:
    """Weight and bias of the gate and of what it opens to."""
    if not hasattr(mlp, "gate_up_proj"):
        return [(part.weight, part.bias) for part in (mlp.gate_proj, mlp.up_proj)]
    both = mlp.gate_up_proj
    biases = (None, None) if both.bias is None else both.bias.chunk(2)
    return list(zip(both.weight.chunk(2), biases, strict=True))


def _activation(mlp: Any) -> Callable[[Tensor], Tensor]:
    return mlp.act_fn if hasattr(mlp, "act_fn") else mlp.activation_fn


class MLPHooks:
    """Asks the MLPs of a language model and slices them, while attached.

    Args:
        calls: The calls of the language model, which know the sequence of each layer.
        methods: By the layer before which they choose tokens.
    """

    def __init__(self, calls: CurrentCalls, methods: dict[int, NeuronMethod]) -> None:
        self.calls = calls
        self.methods = methods

    def attach(self, patches: Patches) -> None:
        """Install everything, until `patches` are undone."""
        for number, layer in enumerate(self.calls.text.layers):
            method = next((self.methods[at] for at in sorted(self.methods, reverse=True) if at - 1 <= number), None)
            if method is None:
                continue
            mlp: Any = getattr(layer, "mlp", None)
            if not hasattr(mlp, "down_proj"):
                raise FoveateError(
                    Refusal(
                        "needs-mlp-neurons",
                        f"{method.name} needs an MLP with neurons in every layer, and layer {number} has none",
                    )
                )
            last = mlp.down_proj
            patches.before(last, partial(self._asked, number, method))
            if "forward" not in vars(mlp):  # what stands there knows nothing of slices: neurons are masked
                patches.wrap(mlp, "forward", partial(self._forward, number, mlp))

    def neurons(
        self, number: int, row: int, found: LLMForwardState, sample: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Activations (L, F) of a row in the layer before `number`, and its core neurons (c,).

        Those of one of its samples alone, where its places (n,) are given.
        """
        activations = found.activations[number - 1]
        if sample is not None:
            return activations[row], self.methods[number].core(activations[row, sample])
        return activations[row], self._core(number - 1, row, self.methods[number], found, activations)

    def forget(self, number: int, found: LLMForwardState) -> None:
        """Activations that layer `number` has asked for are not needed any more."""
        found.activations.pop(number - 1, None)

    def _core(self, number: int, row: int, method: NeuronMethod, found: LLMForwardState, activations: Tensor) -> Tensor:
        """Core neurons of a row at a layer, as they were decided for the prompt."""
        before = found.decided.get((-1 - row, -1 - number))
        if before is None:
            columns = self.calls.short(number, found).columns
            real = sequence.gather_mask(found.seen[:, found.past :], columns)[row] > 0
            with torch.no_grad():
                before = method.core(activations[row, real]), activations.shape[1]
            found.decided[-1 - row, -1 - number] = before
        return before[0]

    def _asked(self, number: int, method: NeuronMethod, module: nn.Module, args: tuple[Tensor, ...]) -> Any:
        """What enters the last matrix: looked at where a prompt is read, masked where text is written."""
        found, (inner,) = self.calls.current, args
        if found is None:
            return None
        if not found.images:
            held = self._held(number, found, inner)
            return None if held is None else (self._masked(inner, [one.neurons for one in held], 0),)
        if number + 1 in self.methods:
            found.activations[number] = inner.detach()
        if torch.is_grad_enabled():
            return None  # nothing is written after it
        core = [self._core(number, row, method, found, inner) for row in range(len(inner))]
        if found.cache is not None and found.kept is not None:
            slices: list[Sliced] = []
            for own in core:  # copies of a prompt, for beams or several answers, share theirs
                same = (one for one in slices if torch.equal(one.neurons, own))
                slices.append(next(same, None) or Sliced(own))
            found.kept.neurons[number] = slices
        prompt = found.decided[-1, -1 - number][1]
        return (self._masked(inner, core, prompt),) if prompt < inner.shape[1] else None

    def _masked(self, inner: Tensor, core: list[Tensor], start: int) -> Tensor:
        """Activations without those of other neurons, from a place on."""
        stays = torch.zeros(len(inner), 1, inner.shape[2], dtype=torch.bool, device=inner.device)
        for row, own in enumerate(core):
            stays[row, 0, own] = True
        return torch.cat([inner[:, :start], inner[:, start:] * stays], dim=1)

    def _held(self, number: int, found: LLMForwardState, hidden: Tensor) -> list[Sliced] | None:
        """The slices of every row where text is being written, None elsewhere."""
        if found.images or found.kept is None or (hidden.shape[1] > 1 and not found.kept.drafted):
            return None
        return found.kept.neurons.get(number)

    def _forward(self, number: int, mlp: Any, original: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
        found = self.calls.current
        held = None if found is None else self._held(number, found, hidden)
        if held is None or not sliceable(mlp):
            return original(hidden)
        if all(one is held[0] for one in held):
            return held[0].forward(mlp, hidden)
        return torch.cat([one.forward(mlp, hidden[row : row + 1]) for row, one in enumerate(held)])
