"""Frames of every scene, between cuts."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np

from foveate.core.errors import FoveateError
from foveate.core.frames import FrameSampler, FrameSource, even_times

#: Longer side in pixels of the frames that are compared.
SIDE = 256


@dataclass(frozen=True)
class Scene(FrameSampler):
    """Reads frames of every scene, in the middle of equal parts of it; scenes lie between cuts.

    A cut is a frame that differs from the one before it by `threshold` or more: the mean absolute difference of hue
    (0 to 180), saturation and value (0 to 255 both) over all pixels, averaged over the three. This is the content
    detector of PySceneDetect, whose defaults these are; of its ways to treat cuts that follow each other closely this
    is "suppress". Every frame of the file is decoded once, at 256 pixels.

    Every scene gets one frame. More frames go one by one to the scene that has the most seconds per frame; where there
    are more scenes than frames, the weakest cuts are left out. Without a budget every scene has one frame.

    Args:
        threshold: Least difference of a cut.
        min_seconds: Shortest time from a cut, or from the beginning, to the next cut.
    """

    threshold: float = 27.0
    min_seconds: float = 0.6

    name: ClassVar[str] = "scene"
    mechanism: ClassVar = ("similarity",)
    title: ClassVar[str] = "Content-aware scene detection (PySceneDetect)"
    budget: ClassVar = "optional"
    static_count: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.threshold < math.inf:
            raise FoveateError(f"scene: threshold is a number above 0, not {self.threshold}.")
        if not 0 <= self.min_seconds < math.inf:
            raise FoveateError(f"scene: min_seconds is a number of seconds, 0 or more, not {self.min_seconds}.")

    def times(self, clip: FrameSource, count: int | None, question: str | None) -> list[float]:
        """See `FrameSampler.times`."""
        cuts = self.cuts(content_differences(clip.read(max_side=SIDE)))
        if count is not None:
            cuts = sorted(heapq.nlargest(count - 1, cuts, key=lambda cut: cut[1]))
        edges = [0.0, *(time for time, _ in cuts), clip.duration]
        scenes = list(pairwise(edges))
        return [
            start + time
            for (start, end), frames in zip(scenes, shares_of(scenes, count), strict=True)
            for time in even_times(end - start, frames)
        ]

    def cuts(self, differences: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
        """Find the cuts of a clip.

        Args:
            differences: Time and difference of every frame; see `content_differences`.

        Returns:
            Time and difference of every cut.
        """
        cuts, last = [], 0.0
        for time, difference in differences:
            if difference >= self.threshold and time - last >= self.min_seconds:
                cuts.append((time, difference))
                last = time
        return cuts


def shares_of(scenes: list[tuple[float, float]], count: int | None) -> list[int]:
    """Divide frames among scenes, given by their beginning and end: one each, more for the longest time per frame."""
    shares = [1] * len(scenes)
    waiting = [(start - end, number) for number, (start, end) in enumerate(scenes)]
    heapq.heapify(waiting)
    for _ in range((count or 0) - len(scenes)):
        _, number = heapq.heappop(waiting)
        shares[number] += 1
        start, end = scenes[number]
        heapq.heappush(waiting, ((start - end) / shares[number], number))
    return shares


def content_differences(frames: Iterable[tuple[float, np.ndarray]]) -> Iterable[tuple[float, float]]:
    """Compare every frame with the one before it; see `Scene`.

    Args:
        frames: Time and pixels (H, W, 3) of each, uint8, RGB.

    Yields:
        The time of a frame and its difference, 0 of the first.
    """
    before = None
    for time, pixels in frames:
        colours = hsv(pixels)
        difference = 0.0 if before is None else float(np.abs(colours - before).mean(axis=(1, 2)).mean())
        before = colours
        yield time, difference


def hsv(pixels: np.ndarray) -> np.ndarray:
    """Convert RGB pixels (H, W, 3), uint8, to hue, saturation and value (3, H, W), int32.

    Hue is half of its degrees, 0 to 179, the others are 0 to 255. They are rounded as OpenCV rounds those of 8-bit
    images: quotients are products with reciprocals of 12 bits.
    """
    red, green, blue = np.moveaxis(pixels.astype(np.int32), -1, 0)
    value = np.maximum(np.maximum(red, green), blue)
    spread = value - np.minimum(np.minimum(red, green), blue)
    sector = np.where(
        value == red,
        green - blue,
        np.where(value == green, blue - red + 2 * spread, red - green + 4 * spread),
    )
    hue = (sector * _HUE[spread] + _HALF) >> _BITS
    return np.stack([np.where(hue < 0, hue + 180, hue), (spread * _SATURATION[value] + _HALF) >> _BITS, value])


_BITS, _HALF = 12, 1 << 11
_HUE, _SATURATION = (np.rint(np.append(0, (most << _BITS) / np.arange(1, 256))).astype(np.int32) for most in (30, 255))
