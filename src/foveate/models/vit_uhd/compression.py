"""Windowed token compression (WTC): the stages that merge 2 x 2 tokens inside the vision transformer.

LLaVA-UHD v3, "Progressive Visual Compression" (arXiv 2511.21150). A stage is a module that takes windows
(M, 4, D), the four tokens of each window row-major, and returns one token a window, (M, D). Cutting packed
images into windows is the layout's work (`Layout.windows`), not the stage's.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from transformers import initialization as init


class AveragePooling(nn.Module):
    """Each window becomes the mean of its tokens."""

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """(M, 4, D) -> (M, D)."""
        return windows.mean(dim=1)


class ContentAdaptivePooling(nn.Module):
    r"""Each window becomes a weighted sum of its tokens, with weights of its own for every channel.

    With m the mean of the window's tokens x_1..x_4 (the published stage, `m_pooling` in the released code):

        l_s = W2 gelu(W1 [x_s ; m] + b1) + b2,    a_s[c] = exp l_s[c] / sum_t exp l_t[c],    y = sum_s a_s * x_s

    Zero logits make it average pooling, so W2 and b2 start at zero. W1 must not: the released code zeroes it
    too, and then every gradient of the stage is zero for ever (the gradient of W2 is the hidden activation,
    that of W1 passes through W2). With W1 at random the first output is the same and W2 learns at once.

    W1 [x_s ; m] is computed as W1a x_s + W1b m: the second product is needed once a window, not four times.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn_layer = nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, width))

    def _layers(self) -> tuple[nn.Linear, nn.GELU, nn.Linear]:
        return cast("tuple[nn.Linear, nn.GELU, nn.Linear]", tuple(self.attn_layer))

    def reset_parameters(self) -> None:
        """Start as exact average pooling that trains: W1 random, b1, W2 and b2 zero."""
        first, _, second = self._layers()
        init.normal_(first.weight, std=first.in_features**-0.5)
        for zeroed in (first.bias, second.weight, second.bias):
            init.zeros_(zeroed)

    def weights(self, windows: torch.Tensor) -> torch.Tensor:
        """The weights a of (M, 4, D) windows: the same shape, sums over the four tokens are 1."""
        first, activation, second = self._layers()
        own, shared = first.weight.chunk(2, dim=1)
        mean = nn.functional.linear(windows.mean(dim=1), shared, first.bias)
        hidden = activation(nn.functional.linear(windows, own) + mean[:, None])
        return second(hidden).softmax(dim=1)

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """(M, 4, D) -> (M, D)."""
        return (self.weights(windows) * windows).sum(dim=1)


def build_stage(config, method: str) -> nn.Module:
    """The stage module of a `merging_method` name that `ViTUHDConfig` has checked."""
    if method == "average":
        return AveragePooling()
    if method == "content-adaptive":
        return ContentAdaptivePooling(config.hidden_size)
    from foveate.models.vit_uhd.early_compression import EarlyCompressor

    return EarlyCompressor(config)


__all__ = ["AveragePooling", "ContentAdaptivePooling", "build_stage"]
