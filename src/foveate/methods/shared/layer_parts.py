"""Frames and tiles of an image or clip before a layer of the language model."""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.core.in_decoder import LayerTokens
from foveate.core.tokens import Crop, Grid


def layer_parts(tokens: LayerTokens) -> list[Tensor]:
    """Indices of the tokens of each frame or tile that has some, and of those that are in none; ascending in each."""
    image = Crop(torch.arange(len(tokens), device=tokens.device), Grid(1, len(tokens)))
    free = torch.ones(len(tokens), dtype=torch.bool, device=tokens.device)
    parts = []
    for crop in tokens.crops or (image,):
        indices = crop.present.to(tokens.device)
        indices = indices[free[indices]].sort().values
        free[indices] = False
        parts.append(indices)
    rest = free.nonzero().flatten()
    return [part for part in (*parts, rest) if len(part)]
