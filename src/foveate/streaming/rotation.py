"""Rotation of cached keys to other positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from foveate.core.errors import FoveateError, Refusal

#: Kinds of rotary embeddings whose frequencies depend on the length of the sequence.
_VARYING = ("dynamic", "longrope")


def shift_rotations(text: nn.Module, shifts: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines that rotate keys to positions which differ by `shifts`.

    Rotations add up: a key rotated by its position p, and then by s, is the key rotated by p + s. The model's own
    rotary embedding computes them, in float32, so that its frequencies and its sections of axes are used.

    Args:
        text: The language model.
        shifts: (L,) int64, or (axes, L) for M-RoPE.

    Returns:
        cos and sin, (L, d) each, of the first d channels of a head.

    Raises:
        FoveateError: the frequencies depend on the length of the sequence, or pairs of channels are not halves.
    """
    rotary: Any = getattr(text, "rotary_emb", None)
    kind = getattr(rotary, "rope_type", "default")
    if rotary is None or kind in _VARYING:
        raise FoveateError(
            Refusal(
                "needs-fixed-rotation",
                f"cached keys cannot be moved to other positions in {type(text).__name__}, whose positions are "
                f"{'not rotary' if rotary is None else f'of type {kind}, with frequencies that change'}",
                "choose a policy whose stream fits the positions of the model",
            )
        )
    sample = torch.zeros(1, 1, 1, device=shifts.device)  # gives the data type and the device
    cos, sin = rotary(sample, shifts[:, None] if shifts.ndim == 2 else shifts[None])
    scaling = float(getattr(rotary, "attention_scaling", 1.0))
    cos, sin = cos[0] / scaling, sin[0] / scaling
    half = cos.shape[-1] // 2
    if not torch.equal(cos[:, :half], cos[:, half:]):
        raise FoveateError(
            Refusal(
                "needs-fixed-rotation",
                f"cached keys cannot be moved to other positions in {type(text).__name__}, which pairs channels in "
                "another way than Llama and Qwen",
                "choose a policy whose stream fits the positions of the model",
            )
        )
    return cos, sin


def rotate(keys: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate keys (..., L, D) by cos and sin (L, d), d <= D, in float32; the data type stays."""
    size = cos.shape[-1]
    turned, rest = keys[..., :size].float(), keys[..., size:]
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat([-second, first], dim=-1) * sin
    return torch.cat([turned.to(keys.dtype), rest], dim=-1)
