"""Measurement of what methods need from the encoder in vLLM, from queries and keys of the named layers.

vLLM's encoders all end in `MMEncoderAttention`, called with rotated queries, keys and values; a hook before it sees
them. What is computed of them is what `foveate.runtime.probe` computes in a model of `transformers`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from foveate.core.tokens import Need
from foveate.runtime.probe import OF_ATTENTION, measure


@contextmanager
def measuring(
    blocks: Any,
    attention: Callable[[Any], nn.Module],
    needs: Sequence[Need],
    has_cls: bool,
) -> Generator[dict[Need, list[Tensor]]]:
    """Record each need inside this context: one tensor per sequence or batch of sequences, in order.

    Values are (tokens) for scores and (tokens, d) for vectors, [CLS] left out; (sequences, d) for `cls_feature`.

    Args:
        blocks: The encoder's blocks.
        attention: The `MMEncoderAttention` of a block.
        needs: What to measure, all of them of the encoder, with layers counted from the start; none: no hooks.
        has_cls: Whether the first token of every sequence is [CLS].
    """
    recorded: dict[Need, list[Tensor]] = {}
    with ExitStack() as hooks:
        for layer in {need.layer for need in needs}:
            block = blocks[layer or 0]
            layer_needs = [need for need in needs if need.layer == layer]
            of_attention = [need for need in layer_needs if need.kind in OF_ATTENTION]
            of_output = [need for need in layer_needs if need.kind not in OF_ATTENTION]
            if of_attention:
                look = _looks(recorded, of_attention, has_cls)
                hooks.callback(attention(block).register_forward_pre_hook(look, with_kwargs=True).remove)
            if of_output:
                hooks.callback(block.register_forward_hook(_notes(recorded, of_output, has_cls)).remove)
        yield recorded


def _looks(recorded: dict[Need, list[Tensor]], needs: list[Need], has_cls: bool) -> Callable[..., None]:
    def look(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = {**dict(zip(("query", "key", "value", "cu_seqlens"), args, strict=False)), **kwargs}
        for query, key in _sequences(call["query"], call["key"], call.get("cu_seqlens"), module):
            for need in needs:
                value = measure(need, query, key, None, float(module.scale), has_cls)
                recorded.setdefault(need, []).append(value[:, int(has_cls) :].flatten(0, 1))

    return look


def _notes(recorded: dict[Need, list[Tensor]], needs: list[Need], has_cls: bool) -> Callable[..., None]:
    def note(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        for need in needs:
            # (images, tokens, d), or (tokens, 1, d) where all images are one sequence without [CLS]
            value = output[:, 0] if need.kind == "cls_feature" else output[:, int(has_cls) :].flatten(0, 1)
            recorded.setdefault(need, []).append(value)

    return note


def _sequences(query: Tensor, key: Tensor, edges: Tensor | None, module: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Split queries and keys (B, H, N, d) into sequences that attend to each other; packed ones one by one."""
    query, key = ((x if x.ndim == 4 else x.unflatten(-1, (-1, module.head_size))).transpose(1, 2) for x in (query, key))
    if edges is None:
        yield query, key
        return
    for start, stop in itertools.pairwise(edges.tolist()):
        if stop > start:
            yield query[:, :, start:stop], key[:, :, start:stop]
