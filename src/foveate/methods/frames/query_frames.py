"""Frames that are like the question, spread by adaptive keyframe sampling."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np

from foveate.core.errors import FoveateError
from foveate.core.frames import FrameSampler, FrameSource
from foveate.methods.shared.contrastive import contrastive_encoder

Strategy = Literal["adaptive", "top"]


@dataclass(frozen=True)
class QueryFrames(FrameSampler):
    """Reads the frames that are most like the question, in the judgement of a contrastive model that the plan names.

    Candidates are frames at `rate` per second. Each is scored by the cosine of its features with those of the question,
    scaled to 0..1 within the clip. The k frames are chosen by adaptive keyframe sampling (AKS, arXiv 2502.21271): where
    the mean of the k best scores is above the mean of all by more than `threshold`, these k are taken; otherwise the
    candidates are halved in time, each half gets half of the frames, and the same is asked of each half, down to
    `depth` halvings. "top" takes the k best scores of the whole clip.

    The authors' code differs where k is no power of two or below 2^depth: it rounds every share down, so that parts may
    have no frame and fewer than k are chosen. Here halving ends where a part would have less than one frame, and frames
    that rounding leaves over are the best of the others. The authors' main scores come from BLIP; their code has CLIP
    as well, which is what this is.

    Features of the answering model itself are no substitute: those of its encoder are not in the space of its words
    before its layers mix them. Where its encoder is the vision tower of a contrastive model (CLIP, SigLIP), name that.

    Args:
        encoder: Folder or Hub id of a model with image and text features in one space, such as CLIP or SigLIP; there is
            no default.
        rate: Candidates per second.
        strategy: "adaptive" or "top".
        threshold: By how much the mean of the best scores is above the mean of a part that is not halved.
        depth: Most halvings.
    """

    encoder: str = ""
    rate: float = 1.0
    strategy: Strategy = "adaptive"
    threshold: float = 0.8
    depth: int = 5

    name: ClassVar[str] = "query-frames"
    mechanism: ClassVar = ("query",)
    title: ClassVar[str] = "Adaptive Keyframe Sampling for Long Video Understanding"
    paper: ClassVar[str] = "arXiv 2502.21271"

    def __post_init__(self) -> None:
        if not self.encoder:
            raise FoveateError(
                "query-frames needs a contrastive model, as folder or Hub id; write one, such as "
                "query-frames(encoder=openai/clip-vit-large-patch14):16."
            )
        if not 0 < self.rate < math.inf:
            raise FoveateError(f"query-frames: rate is a number of candidates per second above 0, not {self.rate}.")
        if self.strategy not in get_args(Strategy):
            raise FoveateError(f"query-frames: strategy is adaptive or top, not {self.strategy!r}.")
        if self.depth < 0:
            raise FoveateError(f"query-frames: depth is a number of halvings, 0 or more, not {self.depth}.")

    def times(self, clip: FrameSource, count: int | None, question: str | None) -> list[float]:
        """See `FrameSampler.times`."""
        self.check_budget(count)
        if not question:
            raise FoveateError("query-frames needs a question, and there is none; choose scene, for example.")
        candidates = np.arange(max(1, math.ceil(clip.duration * self.rate - 1e-9))) / self.rate
        times: list[float] = []
        scores: list[float] = []
        encoder = contrastive_encoder(self.encoder)
        words = encoder.text(question)
        for own, features in encoder.frames(clip.read(candidates)):
            times += own
            scores += (features @ words).tolist()
        chosen = keyframes(scores, count or 1, self.threshold, self.depth if self.strategy == "adaptive" else 0)
        return [times[place] for place in chosen]


def keyframes(scores: Sequence[float], count: int, threshold: float, depth: int) -> list[int]:
    """Choose frames by adaptive keyframe sampling; see `QueryFrames`.

    Args:
        scores: Of the candidates, in order of time.
        count: Most frames.
        threshold: As in `QueryFrames`.
        depth: Most halvings; 0: the best scores of the whole clip.

    Returns:
        The places of the chosen candidates, ascending; all, where there are no more than `count`.
    """
    if len(scores) <= count:
        return list(range(len(scores)))
    values = np.asarray(scores, dtype=np.float64)
    values = (values - values.min()) / max(values.max() - values.min(), np.finfo(np.float64).tiny)
    chosen: set[int] = set()
    parts = [(range(len(values)), 0)]
    while parts:
        part, level = parts.pop()
        inside = values[part.start : part.stop]
        best = heapq.nlargest(count, inside)
        if level < min(depth, int(math.log2(count))) and np.mean(best) - inside.mean() <= threshold:
            middle = part.start + len(part) // 2
            parts += [(range(part.start, middle), level + 1), (range(middle, part.stop), level + 1)]
        else:
            chosen.update(heapq.nlargest(count >> level, part, key=values.__getitem__))
    others = (place for place in range(len(values)) if place not in chosen)
    return sorted([*chosen, *heapq.nlargest(count - len(chosen), others, key=values.__getitem__)])
