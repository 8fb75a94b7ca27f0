"""Virtual unmerging in a live language model: it computes on merged rows and attends at full length.

Outside the layers nothing changes: embeddings, positions, masks, cache and logits have the full length of the
sequence. Patches that were merged have equal embeddings, and stay equal through all that follows, so that the modules
that cost (projections and MLP) run on one row of each group:

    q, k, v:  one row of each group   ->  projection  ->  every position of the group (rotary phases come after)
    output:   mean of the group's attention  ->  projection  ->  every position of the group
    MLP:      one row of each group   ->  MLP         ->  every position of the group

This is `foveate.encoders.merging.unmerging.virtual_attention` without touching a line of a model's attention: any
attention kernel, any cache, adapters and quantised weights work. Attention and cache stay as long as they were, as in
the authors' code; projections and MLP get shorter. The price is one gather of (B, N, D) before and after each.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from foveate.encoders.merging.unmerging import expand, group_mean
from foveate.errors import FoveateError


class _Groups:
    """Which rows of a sequence are one, and the hooks that go between them and full length."""

    def __init__(self, group: Tensor) -> None:
        batch, count = group.shape
        self.group = group
        self.rows = int(group.max()) + 1
        position = torch.arange(count, device=group.device).expand(batch, count)
        first = torch.full((batch, self.rows), count - 1, dtype=torch.int64, device=group.device)
        self.first = first.scatter_reduce_(1, group, position, "amin")

    def of(self, x: Tensor, index: Tensor) -> Tensor:
        """`index` for the batch of x, which beams and several answers to a prompt repeat."""
        return index.repeat_interleave(x.shape[0] // index.shape[0], dim=0).to(x.device)

    def concerns(self, x: Tensor) -> bool:
        """Whether x (B, N, D) is the sequence that was grouped; steps of decoding are shorter."""
        return x.ndim == 3 and x.shape[1] == self.group.shape[1] and x.shape[0] % self.group.shape[0] == 0

    def one_of_each(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Hook before a module: its input, one row of each group."""
        x = args[0]
        return (_marked(expand(x, self.of(x, self.first))), *args[1:]) if self.concerns(x) else None

    def mean_of_each(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Hook before a module: its input, the mean of each group."""
        x = args[0]
        return (_marked(group_mean(x, self.of(x, self.group), self.rows)), *args[1:]) if self.concerns(x) else None

    def all_again(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Hook after a module: its output at full length, if its input was made shorter."""
        return expand(output, self.of(output, self.group)) if getattr(args[0], _MARK, False) else None


def _marked(x: Tensor) -> Tensor:
    """Tell the hook after the module what the one before it did: lengths alone could be those of another call."""
    setattr(x, _MARK, True)
    return x


_MARK = "_foveate_merged_rows"


@contextmanager
def virtual_unmerging(language_model: nn.Module, group: Tensor) -> Generator[None]:
    """Sequences of `group` are computed on merged rows while the context is open.

    The call that reads the prompt has the shape of `group`; calls of other lengths (steps of decoding) are left alone.

    Args:
        language_model: With layers of `self_attn` (`q_proj`, `k_proj`, `v_proj`, `o_proj`) and `mlp`, as Llama, Qwen,
            Mistral and Gemma have.
        group: (B, N) int64, the row of every position, see `sequence_groups`. Embeddings of one row must be equal.

    Raises:
        FoveateError: the layers are built otherwise.
    """
    layers = _layers_of(language_model)
    groups = _Groups(group)
    if groups.rows == group.shape[1]:  # no two positions share a row
        yield
        return
    with ExitStack() as stack:
        for layer in layers:
            for module, before in (
                (layer.self_attn.q_proj, groups.one_of_each),
                (layer.self_attn.k_proj, groups.one_of_each),
                (layer.self_attn.v_proj, groups.one_of_each),
                (layer.self_attn.o_proj, groups.mean_of_each),
                (layer.mlp, groups.one_of_each),
            ):
                stack.callback(module.register_forward_pre_hook(before).remove)
                stack.callback(module.register_forward_hook(groups.all_again).remove)
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
