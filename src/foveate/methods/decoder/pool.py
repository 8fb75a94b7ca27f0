"""LLaVolta: average pooling of image tokens at a decoder layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from foveate.core.in_decoder import DecoderMethod, LayerTokens
from foveate.core.tokens import Selection, merge_tokens


@dataclass(frozen=True)
class PoolDecoder(DecoderMethod):
    """Averages the hidden states of neighbouring image tokens before a decoder layer; made for training in stages.

    The current tokens, in reading order, are cut into as many runs as the budget has tokens, and x'_r is the mean of
    run r: average pooling in one dimension with kernel = stride = s where N = s k. A run takes the place of its token
    (s - 1) // 2, whose position is the mean of the run's positions rounded down. The model is trained with heavy, then
    lighter, then no compression (`plan` in the stages of a recipe), and used without it.

    "Efficient Large Multi-modal Models via Visual Context Compression" (LLaVolta; Chen et al., NeurIPS 2024, arXiv
    2406.20092): before layer K of 32 with stride s; its four stages are (K = 2, s = 8), (K = 2, s = 2), (K = 16, s = 2)
    and no compression, the same number of steps each. Where s does not divide N the authors' code drops the rest; our
    choice: no token is lost and runs differ by one at most. Of positions with several axes (M-RoPE) the run carries
    those of that one token (our choice): a mean over the end of a row would be a place that no token of the run has.
    """

    name: ClassVar[str] = "pool-decoder"
    mechanism: ClassVar = ("transformation",)
    title: ClassVar[str] = "LLaVolta: Visual Context Compression"
    paper: ClassVar[str] = "arXiv 2406.20092"

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """Layer 2 of 32, scaled to the model; at least 1."""
        return (max(1, round(num_layers * 2 / 32)),)

    def select(self, tokens: LayerTokens, count: int) -> Selection:
        """See `DecoderMethod.select`."""
        run = torch.arange(len(tokens), device=tokens.device) * count // len(tokens)
        sizes = run.bincount(minlength=count)
        return merge_tokens(tokens.features, sizes.cumsum(0) - sizes + (sizes - 1) // 2, run)
