"""Frames of a video file, one by one, as a stream reads them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator

import numpy as np

from foveate.clips.clip import NO_LIMITS, check_fps
from foveate.clips.pyav import PyAVSource


def frames_of(path: str | os.PathLike[str], fps: float = 2.0) -> Iterator[tuple[float, np.ndarray]]:
    """Decode a video file frame by frame; one frame is held at a time.

    Args:
        path: The file.
        fps: Frames per second that are read: those that are shown at multiples of 1 / fps, each once.

    Yields:
        The time in seconds and the frame, (H, W, 3) uint8 in RGB.

    Raises:
        FoveateError: PyAV is not installed, there is no such file, it cannot be decoded, or fps is not above 0.
    """
    check_fps(fps)
    source = PyAVSource(path, NO_LIMITS)
    last = math.ceil(source.duration * fps - 1e-6)
    yield from source.read(number / fps for number in range(max(last, 1)))
