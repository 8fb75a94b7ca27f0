"""Base class of methods on clips that decide on every frame when it arrives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.core.pre_llm import divide
from foveate.core.tokens import Selection, VisualTokens, select_tokens, wide
from foveate.core.video import VideoMethod


class FrameSelector(ABC):
    """Selection in the frames of one clip, in the order of time; it remembers the frames before."""

    @abstractmethod
    def select(self, features: Tensor, count: int) -> Tensor:
        """Choose tokens of the next frame.

        Args:
            features: (N, D) of the frame, float32 or float64.
            count: Tokens that stay, 0 to N.

        Returns:
            (count,) int64, ascending.
        """


@dataclass(frozen=True)
class CausalVideoMethod(VideoMethod):
    """A method on clips that knows earlier frames only, and so also runs in a stream.

    The budget of a clip is divided evenly over its frames.
    """

    @abstractmethod
    def start(self) -> FrameSelector:
        """A selector for a new clip or stream."""

    def select(self, tokens: VisualTokens, count: int) -> Selection:
        """See `VideoMethod.select`."""
        frames, places, selector = wide(tokens.frames), tokens.frame_indices, self.start()
        shares = divide(count, [frames.shape[1]] * len(frames))
        kept = [
            place[selector.select(frame, share)] for frame, place, share in zip(frames, places, shares, strict=True)
        ]
        return select_tokens(torch.cat(kept))
