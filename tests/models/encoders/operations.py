"""Operations of an encoder."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def multiplications(model: Any, height: int, width: int) -> int:
    """Multiply-accumulates of matrix products, attention and convolutions for one image, without its weights."""
    with torch.device("meta"):
        pixels = torch.empty(1, 3, height, width)
    model = model.to("meta").requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        model(pixels)
    return counter.get_total_flops() // 2


def built_without_weights(build: Any) -> Any:
    with torch.device("meta"):
        return build().eval()
