"""VidCom2: tokens unlike the mean of the clip and of their frame, more of them in unusual frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.core.tokens import Selection, VisualTokens, select_tokens
from foveate.core.video import VideoMethod

#: Variances of the Gaussian kernels.
_SCALES = tuple(2.0**power for power in range(-3, 2))


@dataclass(frozen=True)
class VidCom2(VideoMethod):
    """Keeps the tokens least similar to the mean token of the clip and of their frame; unusual frames keep more.

    Similarity to a mean m is s(x, m) = sum over a in {1/8, 1/4, 1/2, 1, 2} of exp(-|x - m|^2 / 2a), on the half of the
    channels that vary least over the clip, scaled to unit length. With R = count / (T N), a frame keeps round(N min(1,
    R (1 + p_t - 1/T))) tokens, at least one, where p = softmax(-mean of s(x, clip) over the frame / temperature): those
    with the least s(x, clip) + s(x, frame) (Video Compression Commander, arXiv 2505.14454, section 4). Original
    positions.

    As in the authors' code. The numbers of the frames are rounded each by itself there; to meet the budget exactly, the
    most similar of the kept tokens go, or the least similar of the others stay too, as in vLLM's version. Budgets below
    one token a frame leave frames without any. Scores are computed in float32.

    Args:
        temperature: Of the softmax over the frames.
        channels: Share of the channels that are compared.
    """

    temperature: float = 0.01
    channels: float = 0.5

    name: ClassVar[str] = "vidcom2"
    mechanism: ClassVar = ("similarity",)
    title: ClassVar[str] = (
        "Video Compression Commander: Plug-and-Play Inference Acceleration for Video Large Language Models"
    )
    paper: ClassVar[str] = "arXiv 2505.14454"
    positions: ClassVar = "original"

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise FoveateError(f"vidcom2: temperature is above 0, not {self.temperature}.")
        if not 0 < self.channels <= 1:
            raise FoveateError(f"vidcom2: channels is a share, above 0 up to 1, not {self.channels}.")

    def select(self, tokens: VisualTokens, count: int) -> Selection:
        """See `VideoMethod.select`."""
        frames = self._compared(tokens.frames.float())
        number, size, _ = frames.shape
        clip = _similarity(frames, frames.mean(dim=(0, 1)))
        similarity = clip + _similarity(frames, frames.mean(dim=1, keepdim=True))
        unusual = (-clip.mean(dim=1) / self.temperature).softmax(dim=0)
        share = (count / (number * size) * (1 + unusual - unusual.mean())).clamp(max=1)
        kept = (share * size).round().clamp(min=1)
        rank = similarity.argsort(dim=1, stable=True).argsort(dim=1)
        first = similarity.flatten().argsort(stable=True)
        first = first[(rank >= kept[:, None]).flatten()[first].to(torch.uint8).argsort(stable=True)]
        return select_tokens(tokens.frame_indices.flatten()[first[:count]])

    def _compared(self, frames: Tensor) -> Tensor:
        """Unit vectors (T, N, d) of the channels that vary least."""
        variance = frames.var(dim=(0, 1), unbiased=False)
        least = variance.argsort(stable=True)[: max(1, int(len(variance) * self.channels))]
        return F.normalize(frames[..., least], dim=-1)


def _similarity(frames: Tensor, mean: Tensor) -> Tensor:
    """(T, N) sum of Gaussian kernels of the distances to a mean."""
    distance = (frames - mean).square().sum(dim=-1)
    return torch.stack([(-distance / (2 * scale)).exp() for scale in _SCALES]).sum(dim=0)
