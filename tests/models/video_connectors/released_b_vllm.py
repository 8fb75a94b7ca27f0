"""Inputs of the authors' merging functions of B-VLLM, as formulas."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.models.video_connectors.released_hicom import wave

#: Frames of the clip and thresholds.
MIXED = [(6, 0.75), (3, 0.9), (9, 0.8), (4, 0.999)]
#: Tokens, and how many stay.
REDUCED = [(32, 20), (32, 9), (32, 1), (7, 7), (9, 5)]


def shares(frames: int) -> Tensor:
    """Rows (10, T) that sum to 1."""
    return (3 * wave(f"shares {frames}", (10, frames), 1.0)).softmax(-1)


def mixtures(frames: int) -> Tensor:
    return wave(f"mixtures {frames}", (10, 3, 4), 1.0)


def tokens(count: int) -> Tensor:
    return torch.stack([wave(f"tokens {count} {row}", (count, 6), 1.0) for row in range(2)])
