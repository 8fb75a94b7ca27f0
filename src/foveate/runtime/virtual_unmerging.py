"""Virtual unmerging in a live language model: compute on merged rows, attend at full length.

Outside the layers nothing changes: embeddings, positions, masks, cache and logits have the full length of the
sequence. Patches that were merged have equal embeddings, and stay equal through all that follows, so that the modules
that cost (projections and MLP) run on one row of each group:

    q, k, v:  one row of each group   ->  projection  ->  every position of the group (rotary phases come after)
    output:   mean of the group's attention  ->  projection  ->  every position of the group
    MLP:      one row of each group   ->  MLP         ->  every position of the group

This is `foveate.core.unmerging.virtual_attention` without changing a model's attention: any
attention kernel, any cache, adapters and quantised weights work. Attention and cache stay as long as they were, as in
the authors' code; projections and MLP get shorter. The price is one gather of (B, N, D) before and after each.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from threading import local
from typing import Any

import torch
from torch import Tensor, nn

from foveate.core.errors import FoveateError
from foveate.core.unmerging import expand, group_mean
from foveate.runtime.forward_state import CallRegistry
from foveate.runtime.patches import Patches


class _Groups:
    """Groups of equal rows of a sequence."""

    def __init__(self, group: Tensor) -> None:
        batch, count = group.shape
        self.group = group
        self.needs_grad = torch.is_grad_enabled()  # gradients are off inside a checkpointed layer
        self.rows = int(group.max()) + 1
        position = torch.arange(count, device=group.device).expand(batch, count)
        first = torch.full((batch, self.rows), count - 1, dtype=torch.int64, device=group.device)
        self.first = first.scatter_reduce_(1, group, position, "amin")

    @property
    def alike(self) -> bool:
        """Whether no two positions share a row: then there is nothing to do."""
        return self.rows == self.group.shape[1]

    def of(self, x: Tensor, index: Tensor) -> Tensor:
        """`index` repeated for the batch of x, which may hold beams or several answers per prompt."""
        return index.repeat_interleave(x.shape[0] // index.shape[0], dim=0).to(x.device)

    def concerns(self, x: Tensor) -> bool:
        """Whether x (B, N, D) is the grouped sequence; decoding steps are shorter."""
        return x.ndim == 3 and x.shape[1] == self.group.shape[1] and x.shape[0] % self.group.shape[0] == 0


class VirtualUnmerging:
    """Hooks that compute projections and MLPs of a language model on merged rows.

    Args:
        language_model: A model whose layers have `self_attn` (`q_proj`, `k_proj`, `v_proj`, `o_proj`) and `mlp`, as
            Llama, Qwen, Mistral and Gemma.

    Raises:
        FoveateError: the layers have other submodules.
    """

    def __init__(self, language_model: nn.Module) -> None:
        self.layers = _layers_of(language_model)
        self._local = local()  # `groups` of this thread's call, and `layer`: those of the layer that is running
        self._calls: CallRegistry[_Groups] = CallRegistry()

    def attach(self, patches: Patches) -> None:
        """Install the hooks, until `patches` are undone."""
        for layer in self.layers:
            attention = layer.self_attn
            # Not on the layer: where it is recomputed for its gradient, only the hooks of its submodules run.
            patches.before(attention, self._begin, with_kwargs=True)
            for module, before in (
                (attention.q_proj, self._reduce_to_first),
                (attention.k_proj, self._reduce_to_first),
                (attention.v_proj, self._reduce_to_first),
                (attention.o_proj, self._reduce_to_mean),
                (layer.mlp, self._reduce_to_first),
            ):
                patches.before(module, before)
                patches.after(module, self._expand_output)

    @contextmanager
    def active(self, group: Tensor) -> Generator[None]:
        """Compute this thread's calls on sequences of `group` on merged rows while the context is open.

        The call that reads the prompt has the shape of `group`; calls of other lengths (decoding steps) are unchanged.

        Args:
            group: (B, N) int64, the row of every position, see `sequence_groups`. Embeddings of one row must be equal.
        """
        groups = _Groups(group)
        self._local.groups = None if groups.alike else groups
        try:
            yield
        finally:
            self._local.groups = self._local.layer = None

    def _begin(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Hook before attention: set the groups of this layer."""
        rotation = kwargs.get("position_embeddings")
        groups: _Groups | None = getattr(self._local, "groups", None)
        if rotation is not None:
            if groups is None:
                groups = self._calls.of(rotation[0])
            elif groups.needs_grad:
                self._calls.remember(rotation[0], groups)
        self._local.layer = groups

    def _groups(self, x: Tensor) -> _Groups | None:
        groups: _Groups | None = getattr(self._local, "layer", None)
        return groups if groups is not None and groups.concerns(x) else None

    def _reduce_to_first(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Hook before a module: reduce its input to one row per group."""
        x = args[0]
        groups = self._groups(x)
        return None if groups is None else (_mark(expand(x, groups.of(x, groups.first)), groups), *args[1:])

    def _reduce_to_mean(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Hook before a module: reduce its input to the mean of each group."""
        x = args[0]
        groups = self._groups(x)
        if groups is None:
            return None
        return (_mark(group_mean(x, groups.of(x, groups.group), groups.rows), groups), *args[1:])

    def _expand_output(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Hook after a module: expand its output to full length, if its input was reduced."""
        groups: _Groups | None = getattr(args[0], _MARK, None)
        return None if groups is None else expand(output, groups.of(output, groups.group))


def _mark(x: Tensor, groups: _Groups) -> Tensor:
    """Mark a reduced input for the hook after the module; lengths alone could be those of another call."""
    setattr(x, _MARK, groups)
    return x


_MARK = "_foveate_merged_rows"


@contextmanager
def virtual_unmerging(language_model: nn.Module, group: Tensor) -> Generator[None]:
    """Compute a language model's calls on sequences of `group` on merged rows; see `VirtualUnmerging`.

    Args:
        language_model: See `VirtualUnmerging`. Other threads may call it meanwhile.
        group: See `VirtualUnmerging.active`.

    Raises:
        FoveateError: the layers have other submodules.
    """
    virtual = VirtualUnmerging(language_model)
    with Patches() as patches, virtual.active(group):
        virtual.attach(patches)
        yield


def _layers_of(language_model: Any) -> Any:
    layers = getattr(getattr(language_model, "model", language_model), "layers", None)
    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    if layers is None or not all(
        hasattr(layer, "mlp") and hasattr(layer, "self_attn") and all(hasattr(layer.self_attn, name) for name in names)
        for layer in layers
    ):
        raise FoveateError(
            f"virtual unmerging runs on language models whose layers have self_attn with {', '.join(names)} and mlp, "
            f"not on {type(language_model).__name__}."
        )
    return layers
