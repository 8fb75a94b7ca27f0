"""Parameter memory and dtype."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from foveate.kv_cache.nbytes import stored_bytes


def weight_bytes(model: nn.Module) -> int:
    """Count the bytes of a model's parameters and buffers; tied weights count once."""
    tensors: dict[int, Any] = {id(value): value for value in model.parameters()}
    tensors |= {id(value): value for value in model.buffers()}
    return stored_bytes(list(tensors.values()))


def dtype_of(model: nn.Module) -> str:
    """Return the dtype name of a model's first floating-point parameter."""
    kinds = (weight.dtype for weight in model.parameters() if weight.dtype.is_floating_point)
    return str(next(kinds, torch.float32)).removeprefix("torch.")
