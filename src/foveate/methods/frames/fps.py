"""Frames at a fixed rate (control)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from foveate.core.errors import FoveateError
from foveate.core.frames import FrameSampler, FrameSource, even_times


@dataclass(frozen=True)
class FPS(FrameSampler):
    """Reads frames at a fixed rate; a budget is the most of them, and longer clips then have fewer per second.

    A control, not a paper. Without a plan, clips are read as by `fps(rate=2):32`.

    Args:
        rate: Frames per second.
    """

    rate: float = 2.0

    name: ClassVar[str] = "fps"
    mechanism: ClassVar = ("control",)
    title: ClassVar[str] = "Frames at a fixed rate (control)"
    budget: ClassVar = "optional"

    def __post_init__(self) -> None:
        if not 0 < self.rate < math.inf:
            raise FoveateError(f"fps: rate is a number of frames per second above 0, not {self.rate}.")

    def times(self, clip: FrameSource, count: int | None, question: str | None) -> list[float]:
        """See `FrameSampler.times`."""
        wanted = max(1, round(clip.duration * self.rate))
        return even_times(clip.duration, min(wanted, clip.count if count is None else count))
