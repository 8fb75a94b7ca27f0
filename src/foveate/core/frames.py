"""Base class of methods that choose frames of a clip before the processor."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from foveate.core.method import Method, Modality, Site

if TYPE_CHECKING:
    import numpy as np


class FrameSource(Protocol):
    """Frames of a clip, decoded when they are asked for: memory does not grow with the length of the clip."""

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the end of the last; above 0."""
        ...

    @property
    def fps(self) -> float:
        """Frames per second, the mean where it varies."""
        ...

    @property
    def count(self) -> int:
        """Number of frames; of files whose frame rate varies, by their mean frame rate."""
        ...

    def read(
        self, times: Iterable[float] | None = None, max_side: int | None = None
    ) -> Iterator[tuple[float, np.ndarray]]:
        """Decode frames in order.

        Args:
            times: Ascending seconds from the first frame, each of which names the frame that is shown then. A frame
                that several times name is given once. None: all frames.
            max_side: Frames whose longer side has more pixels are scaled down to so many.

        Yields:
            The time of a frame, in seconds from the first one, and its upright pixels (H, W, 3), uint8, RGB.
        """
        ...


@dataclass(frozen=True)
class FrameSampler(Method):
    """A method that chooses frames of a clip before the processor. Its budget is a number or a fraction of frames.

    A live model never sees the file: `foveate.ask`, `foveate batch` and the server follow such a step when they open
    the clip, and attach the other steps of the plan to the model.
    """

    site: ClassVar[Site] = Site.FRAMES
    modality: ClassVar[tuple[Modality, ...]] = ("video",)
    #: Whether `composed` makes other frames of the chosen ones.
    composes: ClassVar[bool] = False

    @abstractmethod
    def times(self, clip: FrameSource, count: int | None, question: str | None) -> list[float]:
        """Choose frames.

        Args:
            clip: The clip.
            count: Most frames, 1 or more; None leaves it to the method.
            question: What is asked about the clip, where it is known.

        Returns:
            Ascending seconds from the first frame; the frames that are shown then are chosen.

        Raises:
            FoveateError: the method cannot choose, such as by a question that there is none of.
        """

    def composed(self, frames: np.ndarray, timestamps: Sequence[float]) -> tuple[np.ndarray, Sequence[float]]:
        """Make what the model reads of the chosen frames; where the method does not say otherwise, these.

        Args:
            frames: (T, H, W, 3) uint8, RGB.
            timestamps: (T,) their seconds.

        Returns:
            Frames of the same size, and their seconds, which do not descend.
        """
        return frames, timestamps


def even_times(duration: float, count: int) -> list[float]:
    """The middles of `count` equal parts of a clip, in seconds."""
    return [(part + 0.5) * duration / count for part in range(count)]
