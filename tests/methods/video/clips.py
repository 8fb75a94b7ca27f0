"""Clips for tests of methods: given features, and random ones in which much stays as it was."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from foveate.core.tokens import VisualTokens
from foveate.families.family import frame_crops


def clip_of(features: Any, clip: list[int] | tuple[int, int, int], **fields: Any) -> VisualTokens:
    """A clip of (frames, rows, columns) with these features (T * N, D)."""
    features = torch.as_tensor(features)
    crops = frame_crops(*clip, device=features.device)
    assert len(features) == sum(len(crop.index) for crop in crops)
    return VisualTokens(features, crops, **fields)


def moving(clip: tuple[int, int, int], width: int, seed: int = 0, still: float = 0.3) -> Tensor:
    """Features (T * N, D) of a clip in which a share `still` of the tokens stays exactly as in the frame before."""
    generator = torch.Generator().manual_seed(seed)
    frames, tokens = clip[0], clip[1] * clip[2]
    change = torch.randn(frames, tokens, width, generator=generator)
    strength = torch.rand(frames, tokens, 1, generator=generator)
    strength = torch.where(torch.rand(frames, tokens, 1, generator=generator) < still, 0.0, strength)
    strength[0] = 1
    return (change * strength).cumsum(dim=0).flatten(0, 1)
