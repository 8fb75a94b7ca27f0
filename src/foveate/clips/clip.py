"""Decoded frames of a clip, and what they are decoded from."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from foveate.core.errors import FoveateError
from foveate.core.frames import FrameSource

#: Most pixels of all frames together, 0.5 GB of RGB.
MAX_PIXELS = 180_000_000
#: Frames lie on a raster of equal steps where their times differ from it by less than this part of a step: containers
#: round times, Matroska to milliseconds.
OFF_RASTER = 0.1


@dataclass(frozen=True)
class Clip:
    """Frames of a clip.

    Attributes:
        frames: ``(T, H, W, 3)`` uint8, upright, in RGB.
        timestamps: ``(T,)`` seconds of each frame from the first frame of the file, as the file states them.
        metadata: where they come from, as `transformers.video_utils.VideoMetadata` takes it: ``frames_indices`` are the
            numbers of the frames in the file, of ``total_num_frames`` at ``fps``; numbers between two frames of that
            rate where the rate varies, so that ``frames_indices / fps`` are the timestamps.
    """

    frames: np.ndarray
    timestamps: tuple[float, ...]
    metadata: dict[str, Any]

    @property
    def size(self) -> tuple[int, int]:
        """``(width, height)`` in pixels of a frame."""
        return self.frames.shape[2], self.frames.shape[1]

    @property
    def pixels(self) -> int:
        """Number of pixels of all frames."""
        return self.frames.size // 3


def read_clip(source: FrameSource, times: Iterable[float], name: str, backend: str, max_pixels: int) -> Clip:
    """Decode the frames of a clip that are shown at these times.

    Args:
        source: The clip.
        times: Ascending seconds from its first frame.
        name: Of the clip, in messages.
        backend: What decodes it, for the metadata.
        max_pixels: Most pixels of all frames together.

    Raises:
        FoveateError: there is no frame, a frame cannot be decoded, or the frames have too many pixels.
    """
    times, timestamps = list(times), []
    frames = np.empty(0)
    for time, frame in source.read(times):
        if not timestamps:
            height, width, _ = frame.shape
            if len(times) * height * width > max_pixels:
                raise FoveateError(
                    f"{len(times)} frames of {width} x {height} pixels are above the limit of {max_pixels / 1e6:.3g} "
                    f"megapixels; take fewer frames of {name}, or scale it down first."
                )
            frames = np.empty((len(times), *frame.shape), dtype=np.uint8)
        frames[len(timestamps)] = frame
        timestamps.append(time)
    if not timestamps:
        raise FoveateError(f"{name} has no frames that can be decoded.")
    places = np.array(timestamps) * source.fps
    raster = np.rint(places)
    indices = raster.astype(int) if np.abs(places - raster).max() < OFF_RASTER else places
    metadata = {
        "total_num_frames": source.count,
        "fps": source.fps,
        "width": frames.shape[2],
        "height": frames.shape[1],
        "duration": source.duration,
        "video_backend": backend,
        "frames_indices": indices.tolist(),
    }
    return Clip(frames[: len(timestamps)], tuple(timestamps), metadata)


def shown(source: Any) -> str:
    """Name a source of a clip in a message."""
    return repr(os.fsdecode(source)[:200]) if isinstance(source, (str, os.PathLike)) else "the given video"
