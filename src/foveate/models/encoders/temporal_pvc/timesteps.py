"""Conditioning of layers on the time of a frame within its clip."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import initialization as init

from foveate.core.errors import FoveateError
from foveate.models.encoders.encoder import SelfInitialized

#: Width of the sines and cosines of a time.
SINUSOID = 256


def relative_times(counts: Sequence[int], timestamps: Tensor | None, device: torch.device) -> Tensor:
    """Times `(F,)` from 0 for the first to 1 for the last frame of every clip.

    Args:
        counts: Frames of every clip; their sum is F.
        timestamps: `(F,)` in seconds; None: frames are at equal distances.
        device: Of the result.

    Raises:
        FoveateError: Timestamps of a clip descend, or are no numbers.
    """
    if timestamps is None:
        steps = [torch.arange(count, device=device) for count in counts]
    else:
        steps = [clip - clip[0] for clip in timestamps.to(device).split(list(counts))]
        if not all(bool((step.isfinite() & (step >= step.cummax(0).values)).all()) for step in steps):
            raise FoveateError("timestamps of the frames of a clip must be seconds that do not descend.")
    return torch.cat([step / step[-1].clamp(min=torch.finfo(torch.float32).tiny) for step in steps])


class TimestepEmbedding(nn.Module):
    """Embedding TE(t) of a time: sines and cosines at 128 frequencies, then an MLP.

    Args:
        width: Width E of the embedding.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(SINUSOID, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, times: Tensor) -> Tensor:
        """Embed times `(F,)`: `(F, E)`."""
        half = SINUSOID // 2
        frequencies = 10_000.0 ** -(torch.arange(half, device=times.device) / half)
        angles = times.float()[:, None] * frequencies
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return self.fc2(nn.functional.silu(self.fc1(waves.to(self.fc1.weight.dtype))))


class AdaptiveLayerNorm(SelfInitialized):
    """`LN(x) (1 + gamma(TE)) + beta(TE)`, with two linear functions of the embedding of the time.

    Args:
        width: Width D of the tokens.
        condition: Width E of the embedding.
        eps: Of the layer norm.
        zero_init: Whether gamma and beta begin at zero.
    """

    def __init__(self, width: int, condition: int, eps: float, zero_init: bool = True) -> None:
        super().__init__()
        self.zero_init = zero_init
        self.norm = nn.LayerNorm(width, eps=eps)
        self.modulation = nn.Linear(condition, 2 * width)

    def reset_parameters(self, std: float) -> None:
        """See `SelfInitialized.reset_parameters`."""
        if self.zero_init:
            init.zeros_(self.modulation.weight)
            init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Normalize the tokens `(F, N, D)` of frames with embeddings `(F, E)`."""
        gamma, beta = self.modulation(condition).unsqueeze(1).chunk(2, dim=-1)
        return self.norm(x) * (1 + gamma) + beta
