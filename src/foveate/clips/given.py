"""Frames of a clip that a program has decoded itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from foveate.core.errors import FoveateError


def frame_list(frames: Any) -> list[Any]:
    """The frames of a clip as a list.

    Raises:
        FoveateError: they are no list or anything else that can be gone through.
    """
    if not isinstance(frames, Iterable):
        raise FoveateError(f"frames are a list of images, not {type(frames).__name__}.")
    return list(frames)


class GivenFrames:
    """Frames of a clip that are in memory; see `foveate.core.frames.FrameSource`.

    Args:
        frames: one (H, W, 3) array, uint8, RGB, for each frame, all of one size.
        timestamps: (T,) ascending seconds of the frames; None: `fps` frames per second.
        fps: frame rate where there are no timestamps.

    Raises:
        FoveateError: there is no frame, frames are no such arrays or differ in size, or there are not as many ascending
            times as frames.
    """

    backend = "frames"
    name = "the given frames"

    def __init__(self, frames: Iterable[np.ndarray], timestamps: Iterable[float] | None, fps: float) -> None:
        frames = frame_list(frames)
        if not frames:
            raise FoveateError("there are no frames to ask about; give at least one.")
        for number, frame in enumerate(frames):
            if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
                what = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
                raise FoveateError(
                    f"frames of a clip are arrays (height, width, 3) of uint8, in RGB, and frame {number} is {what}; "
                    "foveate.images.open_image reads other forms."
                )
        sizes = {frame.shape[:2] for frame in frames}
        if len(sizes) > 1:
            listed = ", ".join(f"{width} x {height}" for height, width in sorted(sizes)[:3])
            raise FoveateError(f"frames of a clip have one size, and these have several: {listed}; resize them first.")
        self._frames = frames
        if timestamps is None:
            times = np.arange(len(frames)) / fps
        else:
            try:
                times = np.array([float(time) for time in timestamps])
            except (TypeError, ValueError):  # no numbers
                times = np.empty(0)
            if times.shape != (len(frames),) or not np.isfinite(times).all() or (np.diff(times) <= 0).any():
                raise FoveateError(
                    f"timestamps must be {len(frames)} ascending numbers of seconds, one for each frame."
                )
        self._times = times - times[0]
        self.count = len(frames)
        # The last frame is shown as long as frames are on average.
        self.fps = fps if len(frames) == 1 else (len(frames) - 1) / float(self._times[-1])
        self.duration = float(self._times[-1]) + 1 / self.fps

    def read(
        self, times: Iterable[float] | None = None, max_side: int | None = None
    ) -> Iterator[tuple[float, np.ndarray]]:
        """Give frames in order; see `foveate.core.frames.FrameSource.read`."""
        if times is None:
            places: Iterable[int] = range(self.count)
        else:
            after = np.searchsorted(self._times, np.fromiter(times, dtype=np.float64) + 1e-9, side="right")
            places = dict.fromkeys((after - 1).clip(min=0).tolist())
        for place in places:
            yield float(self._times[place]), scaled(self._frames[place], max_side)


def scaled(pixels: np.ndarray, max_side: int | None) -> np.ndarray:
    """Scale an image (H, W, 3) down to a longest side; None, or an image that is smaller: unchanged."""
    height, width, _ = pixels.shape
    if max_side is None or max(height, width) <= max_side:
        return pixels
    scale = max_side / max(height, width)
    return np.asarray(Image.fromarray(pixels).resize((max(1, round(width * scale)), max(1, round(height * scale)))))
