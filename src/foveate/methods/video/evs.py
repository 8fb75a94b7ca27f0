"""EVS: tokens that changed since the previous frame, and the whole first frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from foveate.core.tokens import Selection, VisualTokens, select_tokens, topk_indices, wide
from foveate.core.video import VideoMethod
from foveate.methods.shared.cells import cells


@dataclass(frozen=True)
class EVS(VideoMethod):
    """Keeps the first frame and the tokens that differ most from those at the same place one frame before.

    The score of token p of frame t is 1 - cos(x[t, p], x[t - 1, p]) on the tokens that the language model would read,
    and that of the first frame is above all others; the `count` highest scores of the clip stay, so that busy frames
    keep more than static ones (Efficient Video Sampling, arXiv 2510.14624). Positions are the original ones.

    This is the authors' code in vLLM (its video pruning rate q is a budget of 1 - q); their paper compares the pixels
    of patches by the L1 norm of their difference. Scores are computed in float32, where vLLM takes the precision of the
    model. Of equal scores the first token wins. Budgets below the tokens of one frame, which vLLM raises to one frame,
    and images, which it leaves whole, keep evenly spaced tokens of the first frame.
    """

    name: ClassVar[str] = "evs"
    mechanism: ClassVar = ("similarity",)
    title: ClassVar[str] = "Efficient Video Sampling: Pruning Temporally Redundant Tokens for Faster VLM Inference"
    paper: ClassVar[str] = "arXiv 2510.14624"
    positions: ClassVar = "original"

    def select(self, tokens: VisualTokens, count: int) -> Selection:
        """See `VideoMethod.select`."""
        first, frames = tokens.crops[0], wide(tokens.frames)
        if count < frames.shape[1]:
            return select_tokens(first.present[cells(first, count)[0]])
        change = 1 - F.cosine_similarity(frames[1:], frames[:-1], dim=-1)
        score = torch.cat([torch.full_like(frames[:1, :, 0], torch.inf), change]).flatten()
        return select_tokens(tokens.frame_indices.flatten()[topk_indices(score, count)])
