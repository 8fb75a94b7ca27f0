"""STC-Pruner: tokens that differ from their frame and from the frames before."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.causal_video import CausalVideoMethod, FrameSelector
from foveate.core.errors import FoveateError
from foveate.core.tokens import topk_indices

#: Widths of the Gaussians of the authors' code.
_WIDTHS = (0.125, 0.25, 0.5, 1.0, 2.0)


@dataclass(frozen=True)
class STC(CausalVideoMethod):
    """Keeps the tokens of a frame that are most unlike the mean of their frame and the mean of the frames before.

    The novelty of a token z is alpha * (1 - cos(z, a_t)) + (1 - alpha) * (1 - cos(z, a_s)), where a_s is the mean token
    of its frame and a_t the mean of the last `window` frame means (Streaming Token Compression, arXiv 2512.00891, the
    STC-Pruner). The first frame has no a_t and is scored by a_s alone. Every frame keeps its share of the budget. The
    paper's alpha and window could not be verified; the defaults are ours.

    `form="code"` scores as the authors' code does: of every frame the half of the channels with the lowest variance
    over its tokens is used, by rising variance, and tokens are normalized; the score is the sum over five widths w in
    1/8 to 2 of exp(-|z - m|^2 / 2w), for m the mean of the frame, and for m the normalized mean of all frame means so
    far, its own among them; the lowest scores stay. As frames choose other channels, that mean averages different
    channels, as in the code. There `alpha` and `window` have no meaning. Sums are taken in float32; of equal scores the
    first token wins.

    Args:
        alpha: Weight of the frames before, 0 to 1.
        window: Frames whose means are averaged.
        form: "paper" or "code".
    """

    name: ClassVar[str] = "stc"
    mechanism: ClassVar = ("similarity",)
    title: ClassVar[str] = (
        "Accelerating Streaming Video Large Language Models via Hierarchical Token Compression (STC-Pruner)"
    )
    paper: ClassVar[str] = "arXiv 2512.00891"

    alpha: float = 0.5
    window: int = 16
    form: Literal["paper", "code"] = "paper"

    def __post_init__(self) -> None:
        """Check the hyper-parameters."""
        if not 0 <= self.alpha <= 1:
            raise FoveateError(f"{self.name}: alpha is {self.alpha}; it lies between 0 and 1.")
        if not isinstance(self.window, int) or isinstance(self.window, bool) or self.window < 1:
            raise FoveateError(f"{self.name}: window is {self.window}; it is a number of frames, 1 or more.")
        if self.form not in ("paper", "code"):
            raise FoveateError(f'{self.name}: form is "paper" or "code", not {self.form!r}.')

    def start(self) -> FrameSelector:
        """See `CausalVideoMethod.start`."""
        return _Gaussian() if self.form == "code" else _Novelty(self.alpha, self.window)


class _Novelty(FrameSelector):
    """Selection by the paper's novelty."""

    def __init__(self, alpha: float, window: int) -> None:
        self.alpha = alpha
        self.means: deque[Tensor] = deque(maxlen=window)

    def select(self, features: Tensor, count: int) -> Tensor:
        """See `FrameSelector.select`."""
        mean = features.mean(dim=0)
        novelty = 1 - F.cosine_similarity(features, mean[None], dim=1)
        if self.means:
            before = torch.stack(tuple(self.means)).mean(dim=0)
            earlier = 1 - F.cosine_similarity(features, before[None], dim=1)
            novelty = self.alpha * earlier + (1 - self.alpha) * novelty
        self.means.append(mean)
        return topk_indices(novelty, count)


class _Gaussian(FrameSelector):
    """Selection as in the authors' code."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.frames = 0

    def select(self, features: Tensor, count: int) -> Tensor:
        """See `FrameSelector.select`."""
        variance = features.var(dim=0, unbiased=False)
        features = features[:, variance.argsort(stable=True)[: max(features.shape[1] // 2, 1)]]
        mean = features.mean(dim=0)
        self.total = mean if self.total is None else self.total + mean
        self.frames += 1
        tokens = F.normalize(features, dim=1)
        score = _likeness(tokens, tokens.mean(dim=0))
        score = score + _likeness(tokens, F.normalize(self.total / self.frames, dim=0))
        return topk_indices(-score, count)


def _likeness(tokens: Tensor, mean: Tensor) -> Tensor:
    """(N,) sum of Gaussians of the distances of tokens (N, D) to a mean (D,)."""
    distance = (tokens - mean).square().sum(dim=1)
    widths = torch.tensor(_WIDTHS, dtype=distance.dtype, device=distance.device)
    return torch.exp(-distance[:, None] / (2 * widths)).sum(dim=1)
