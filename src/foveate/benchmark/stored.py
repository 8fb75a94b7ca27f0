"""Bytes that tensors really take, quantised ones too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from foveate.cache import MixedLayer


def stored_bytes(values: Any) -> int:
    """Bytes of all tensors in a value: a tensor, a quantised one with its scales, or any nesting of these.

    Args:
        values: Tensors, mappings, lists, tuples; everything else takes nothing.
    """
    if isinstance(values, Tensor):
        inner = getattr(values, "__tensor_flatten__", None)  # how tensors of several parts name them
        if inner is not None and type(values) not in (Tensor, nn.Parameter):
            return stored_bytes([getattr(values, name) for name in inner()[0]])
        own = values.numel() * values.element_size()
        state = getattr(values, "quant_state", None)  # bitsandbytes keeps the scales beside the tensor
        return own + (stored_bytes(list(vars(state).values())) if state is not None else 0)
    if isinstance(values, Mapping):
        return sum(map(stored_bytes, values.values()))
    if isinstance(values, Iterable) and not isinstance(values, (str, bytes)):
        return sum(map(stored_bytes, values))
    return 0


def weight_bytes(model: nn.Module) -> int:
    """Bytes of a model's weights and buffers; weights that are tied count once."""
    found: dict[int, Any] = {id(value): value for value in model.parameters()}
    found |= {id(value): value for value in model.buffers()}
    return stored_bytes(list(found.values()))


#: Where layers of caches keep what they remember.
_KEPT = ("keys", "values", "_quantized_keys", "_quantized_values", "indexer_keys", "conv_states", "recurrent_states")


def cache_bytes(cache: Any) -> list[int]:
    """Bytes of keys, values and states in every layer of a cache of `transformers`."""
    return [
        layer.nbytes if isinstance(layer, MixedLayer) else stored_bytes([vars(layer).get(name) for name in _KEPT])
        for layer in cache.layers
    ]


def dtype_of(model: nn.Module) -> str:
    """Name of the type of a model's first floating-point weight."""
    kinds = (weight.dtype for weight in model.parameters() if weight.dtype.is_floating_point)
    return str(next(kinds, torch.float32)).removeprefix("torch.")
