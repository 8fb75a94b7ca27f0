"""Virtual unmerging in a live language model: it computes on merged rows and attends at full length.

Outside the layers nothing changes: embeddings, positions, masks, cache and logits have the full length of the
sequence. Patches that were merged have equal embeddings, and stay equal through all that follows, so that the modules
that cost (projections and MLP) run on one row of each group:

    q, k, v:  one row of each group   ->  projection  ->  every position of the group (rotary phases come after)
    output:   mean of the group's attention  ->  projection  ->  every position of the group
    MLP:      one row of each group   ->  MLP         ->  every position of the group

This is `foveate.core.unmerging.virtual_attention` without touching a line of a model's attention: any
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
    """Which rows of a sequence are one."""

    def __init__(self, group: Tensor) -> None:
        batch, count = group.shape
        self.group = group
        self.learns = torch.is_grad_enabled()  # here, as nothing tells of it inside a layer that is checkpointed
        self.rows = int(group.max()) + 1
        position = torch.arange(count, device=group.device).expand(batch, count)
        first = torch.full((batch, self.rows), count - 1, dtype=torch.int64, device=group.device)
        self.first = first.scatter_reduce_(1, group, position, "amin")

    @property
    def alike(self) -> bool:
        """Whether no two positions share a row."""
        return self.rows == self.group.shape[1]

    def of(self, x: Tensor, index: Tensor) -> Tensor:
        """`index` for the batch of x, which beams and several answers to a prompt repeat."""
        return index.repeat_interleave(x.shape[0] // index.shape[0], dim=0).to(x.device)

    def concerns(self, x: Tensor) -> bool:
        """Whether x (B, N, D) is the sequence that was grouped; steps of decoding are shorter."""
        return x.ndim == 3 and x.shape[1] == self.group.shape[1] and x.shape[0] % self.group.shape[0] == 0


class VirtualUnmerging:
    """Hooks in the layers of a language model that compute on merged rows, where a call says so.

    Args:
        language_model: With layers of `self_attn` (`q_proj`, `k_proj`, `v_proj`, `o_proj`) and `mlp`, as Llama, Qwen,
            Mistral and Gemma have.

    Raises:
        FoveateError: the layers are built otherwise.
    """

    def __init__(self, language_model: nn.Module) -> None:
        self.layers = _layers_of(language_model)
        self._local = local()  # `groups` of this thread's call, and `layer`: those of the layer that is running
        self._calls: CallRegistry[_Groups] = CallRegistry()

    def attach(self, patches: Patches) -> None:
        """Install the hooks, until `patches` are undone."""
        for layer in self.layers:
            attention = layer.self_attn
            # Not before the layer: where it runs again for its gradient, only the hooks of what is in it do.
            patches.before(attention, self._begin, with_kwargs=True)
            for module, before in (
                (attention.q_proj, self._one_of_each),
                (attention.k_proj, self._one_of_each),
                (attention.v_proj, self._one_of_each),
                (attention.o_proj, self._mean_of_each),
                (layer.mlp, self._one_of_each),
            ):
                patches.before(module, before)
                patches.after(module, self._all_again)

    @contextmanager
    def active(self, group: Tensor) -> Generator[None]:
        """This thread's calls on sequences of `group` are computed on merged rows while the context is open.

        The call that reads the prompt has the shape of `group`; calls of other lengths (steps of decoding) are left
        alone.

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
        """Hook before attention: which rows are one in this layer."""
        rotation = kwargs.get("position_embeddings")
        groups: _Groups | None = getattr(self._local, "groups", None)
        if rotation is not None:
            if groups is None:
                groups = self._calls.of(rotation[0])
            elif groups.learns:
                self._calls.remember(rotation[0], groups)
        self._local.layer = groups

    def _groups(self, x: Tensor) -> _Groups | None:
        groups: _Groups | None = getattr(self._local, "layer", None)
        return groups if groups is not None and groups.concerns(x) else None

    def _one_of_each(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Hook before a module: its input, one row of each group."""
        x = args[0]
        groups = self._groups(x)
        return None if groups is None else (_marked(expand(x, groups.of(x, groups.first)), groups), *args[1:])

    def _mean_of_each(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Hook before a module: its input, the mean of each group."""
        x = args[0]
        groups = self._groups(x)
        if groups is None:
            return None
        return (_marked(group_mean(x, groups.of(x, groups.group), groups.rows), groups), *args[1:])

    def _all_again(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Hook after a module: its output at full length, if its input was made shorter."""
        groups: _Groups | None = getattr(args[0], _MARK, None)
        return None if groups is None else expand(output, groups.of(output, groups.group))


def _marked(x: Tensor, groups: _Groups) -> Tensor:
    """Tell the hook after the module what the one before it did: lengths alone could be those of another call."""
    setattr(x, _MARK, groups)
    return x


_MARK = "_foveate_merged_rows"


@contextmanager
def virtual_unmerging(language_model: nn.Module, group: Tensor) -> Generator[None]:
    """A language model whose calls on sequences of `group` are computed on merged rows, see `VirtualUnmerging`.

    Args:
        language_model: See `VirtualUnmerging`. Other threads may go on calling it.
        group: See `VirtualUnmerging.active`.

    Raises:
        FoveateError: the layers are built otherwise.
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
