"""Weights and inputs of Slow-Fast in the authors' layout, as formulas; a decoder layer of Qwen2 with 4 heads."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.models.video_connectors.released_hicom import wave

CONFIG = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 1,
    "vocab_size": 8,
    "rms_norm_eps": 1e-6,
    "use_sliding_window": False,
    "sliding_window": None,
}
LENGTH, SLOW, HEAD = 7, 5, 8
#: Types of the tokens of two prompts: 1 and 2 text, 3 visual, 4 padding; and slow tokens of each.
TYPES = {
    "images": ([[1, 3, 3, 1, 1, 2, 2], [3, 3, 1, 2, 2, 4, 4]], [5, 3]),
    "text": ([[1, 1, 3, 3, 3, 1, 2], [1, 1, 2, 2, 2, 2, 2]], [4, 5]),
    "one": ([[1, 3, 1, 1, 2, 2, 2], [1, 1, 1, 3, 3, 3, 2]], [1, 2]),
}
#: Frames, side of a frame, and sampling, temporal and spatial strides with the least frames.
POOLED = [(8, 4, 1, 4, 1, 1), (9, 4, 2, 2, 2, 1), (11, 4, 1, 4, 1, 3), (7, 2, 3, 1, 1, 4), (1, 4, 1, 4, 2, 1)]


def weights(shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """Weights of a decoder layer of these names and shapes."""
    return {
        name: wave(name, tuple(shape), 0.9 if "gate" in name and "mlp" not in name else 0.25)
        + (1.0 if name.endswith("layernorm.weight") else 0.0)
        for name, shape in shapes.items()
    }


def hidden(case: str) -> Tensor:
    return wave(f"hidden {case}", (2, LENGTH, 32), 1.0)


def slow(case: str) -> Tensor:
    return wave(f"slow {case}", (2, SLOW, 32), 1.0)


def rotation() -> tuple[Tensor, Tensor]:
    angles = torch.arange(LENGTH)[:, None] * 10_000.0 ** (-torch.arange(HEAD // 2) / (HEAD // 2))
    angles = torch.cat([angles, angles], dim=-1)[None].float().expand(2, -1, -1)
    return angles.cos(), angles.sin()


def causal(case: str) -> Tensor:
    """Additive mask (2, 1, L, L)."""
    types = torch.tensor(TYPES[case][0])
    allowed = torch.ones(LENGTH, LENGTH).tril().bool()[None] & (types != 4)[:, None]
    allowed = allowed | torch.eye(LENGTH).bool()
    return torch.where(allowed, 0.0, -1e9)[:, None]


def clip(frames: int, side: int) -> Tensor:
    """Projected tokens (T, side^2, 3) of a clip."""
    return wave(f"clip {frames} {side}", (frames, side * side, 3), 1.0)
