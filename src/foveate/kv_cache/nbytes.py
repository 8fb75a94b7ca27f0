"""Memory of caches in bytes, quantised ones included."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from transformers.cache_utils import Cache

from foveate.kv_cache.mixed_precision import MixedLayer


def stored_bytes(values: Any) -> int:
    """Bytes of all tensors in a value: a tensor, a quantised one with its scales, or any nesting of them.

    Args:
        values: Tensors, mappings, lists, tuples; everything else counts 0.
    """
    if isinstance(values, Tensor):
        inner = getattr(values, "__tensor_flatten__", None)  # names the parts of a tensor subclass
        if inner is not None and type(values) not in (Tensor, nn.Parameter):
            return stored_bytes([getattr(values, name) for name in inner()[0]])
        nbytes = values.numel() * values.element_size()
        state = getattr(values, "quant_state", None)  # bitsandbytes keeps the scales next to the tensor
        return nbytes + (stored_bytes(list(vars(state).values())) if state is not None else 0)
    if isinstance(values, Mapping):
        return sum(map(stored_bytes, values.values()))
    if isinstance(values, Iterable) and not isinstance(values, (str, bytes)):
        return sum(map(stored_bytes, values))
    return 0


#: Attributes of cache layers that hold tensors.
_KEPT = ("keys", "values", "_quantized_keys", "_quantized_values", "indexer_keys", "conv_states", "recurrent_states")


def cache_bytes(cache: Any) -> list[int]:
    """Bytes of keys, values and states in every layer of a cache of `transformers`."""
    return [
        layer.nbytes if isinstance(layer, MixedLayer) else stored_bytes([vars(layer).get(name) for name in _KEPT])
        for layer in cache.layers
    ]


def bytes_of(cache: Any) -> int | None:
    """Bytes of all layers of a cache; None for anything but a cache of `transformers`."""
    return sum(cache_bytes(cache)) if isinstance(cache, Cache) else None
