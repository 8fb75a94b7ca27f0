"""Clips that tests of frame samplers render."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np


def noise(count: int = 12, seed: int = 0) -> np.ndarray:
    """(count, 24, 32, 3) uint8 of random colours."""
    return np.random.default_rng(seed).integers(0, 256, (count, 24, 32, 3), dtype=np.uint8)


def drifting(count: int = 40) -> np.ndarray:
    """(count, 24, 32, 3) uint8: smooth colours that drift, with hard cuts at frames 12, 15, 27 and 38."""
    row, column = np.mgrid[0:24, 0:32] / 24
    frames = []
    for number in range(count):
        scene = sum(number >= cut for cut in (12, 15, 27, 38))
        phase = 0.02 * number + 1.7 * scene
        waves = [
            np.sin(3 * row + phase),
            np.sin(2 * column + 2 * phase + scene),
            np.cos(2 * row - column + phase * scene),
        ]
        frames.append(np.rint(127.5 + 127.5 * np.stack(waves, axis=-1)))
    return np.array(frames).astype(np.uint8)


def fading(count: int = 16) -> np.ndarray:
    """(count, 24, 32, 3) uint8: grey and colour, from dark to light."""
    base = noise(1, 3)[0].astype(np.float64)
    base[:, :8] = base[:, :8].mean(axis=-1, keepdims=True)
    return np.array([np.rint(base * number / (count - 1)) for number in range(count)]).astype(np.uint8)


class Rendered:
    """A clip in memory, as samplers read it.

    Args:
        frames: (T, H, W, 3) uint8.
        fps: frames per second.
    """

    def __init__(self, frames: np.ndarray, fps: float = 10.0) -> None:
        self.frames, self.fps, self.count = frames, fps, len(frames)
        self.duration = len(frames) / fps

    def read(
        self, times: Iterable[float] | None = None, max_side: int | None = None
    ) -> Iterator[tuple[float, np.ndarray]]:
        """See `FrameSource.read`; nothing is scaled."""
        numbers = range(self.count) if times is None else dict.fromkeys(int(t * self.fps + 1e-9) for t in times)
        for number in numbers:
            yield number / self.fps, self.frames[number]
