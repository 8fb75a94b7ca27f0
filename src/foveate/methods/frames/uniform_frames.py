"""Frames at even times (control)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.core.frames import FrameSampler, FrameSource, even_times


@dataclass(frozen=True)
class UniformFrames(FrameSampler):
    """Reads frames at even times: the middles of as many equal parts of the clip as the budget has frames.

    A control, not a paper. Where the frame rate of a file varies, two times may show one frame, which is read once.
    """

    name: ClassVar[str] = "uniform-frames"
    mechanism: ClassVar = ("control",)
    title: ClassVar[str] = "Frames at even times (control)"

    def times(self, clip: FrameSource, count: int | None, question: str | None) -> list[float]:
        """See `FrameSampler.times`."""
        self.check_budget(count)
        return even_times(clip.duration, count or 1)
