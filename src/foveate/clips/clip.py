"""Decoded frames of a clip, and what they are decoded from."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from foveate.core.errors import FoveateError
from foveate.core.frames import FrameSampler, FrameSource

#: Most pixels of all frames together, 0.5 GB of RGB.
MAX_PIXELS = 180_000_000
#: Frames lie on a raster of equal steps where their times differ from it by less than this part of a step: containers
#: round times, Matroska to milliseconds. And by less than so many seconds: steps of slides and screens are long.
OFF_RASTER, OFF_SECONDS = 0.1, 0.01


@dataclass(frozen=True)
class ClipLimits:
    """Limits of a clip; None: there is none.

    Args:
        frames: Most frames that are chosen.
        pixels: Most pixels of all chosen frames together.
        frame_pixels: Most pixels of one frame, checked before decoding.
        seconds: Longest clip.
        decode_seconds: Longest time of decoding.
    """

    frames: int | None = None
    pixels: int = MAX_PIXELS
    frame_pixels: int = MAX_PIXELS
    seconds: float | None = None
    decode_seconds: float | None = None


#: Of clips that a user opens: only those of memory.
NO_LIMITS = ClipLimits()


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


def read_clip(
    source: FrameSource,
    times: Iterable[float],
    name: str,
    backend: str,
    limits: ClipLimits,
    sampler: FrameSampler | None = None,
) -> Clip:
    """Decode the frames of a clip that are shown at these times.

    Args:
        source: The clip.
        times: Ascending seconds from its first frame.
        name: Of the clip, in messages.
        backend: What decodes it, for the metadata.
        limits: Of the frames.
        sampler: Makes what is read of these frames.

    Raises:
        FoveateError: there is no frame, a frame cannot be decoded, or there are too many frames or pixels.
    """
    times, timestamps = list(times), []
    _check_number(len(times), limits)
    frames = np.empty(0)
    for time, frame in source.read(times):
        if not timestamps:
            height, width, _ = frame.shape
            _check_pixels(len(times), height, width, name, limits)
            frames = np.empty((len(times), *frame.shape), dtype=np.uint8)
        frames[len(timestamps)] = frame
        timestamps.append(time)
    if not timestamps:
        raise FoveateError(f"{name} has no frames that can be decoded.")
    frames = frames[: len(timestamps)]
    if sampler is not None and sampler.composes:
        frames, seconds = sampler.composed(frames, timestamps)
        timestamps = list(seconds)
        _check_number(len(frames), limits)
        _check_pixels(len(frames), *frames.shape[1:3], name, limits)
    places = np.array(timestamps) * source.fps
    raster = np.rint(places)
    even = np.abs(places - raster).max() < min(OFF_RASTER, OFF_SECONDS * source.fps)
    indices = raster.astype(int) if even else places
    metadata = {
        "total_num_frames": source.count,
        "fps": source.fps,
        "width": frames.shape[2],
        "height": frames.shape[1],
        "duration": source.duration,
        "video_backend": backend,
        "frames_indices": indices.tolist(),
    }
    return Clip(frames, tuple(timestamps), metadata)


def _check_number(count: int, limits: ClipLimits) -> None:
    if limits.frames is not None and count > limits.frames:
        raise FoveateError(f"at most {limits.frames} frames of a clip may be read here, not {count}.")


def _check_pixels(count: int, height: int, width: int, name: str, limits: ClipLimits) -> None:
    if count * height * width > limits.pixels:
        raise FoveateError(
            f"{count} frames of {width} x {height} pixels are above the limit of {limits.pixels / 1e6:.3g} megapixels; "
            f"take fewer frames of {name}, or scale it down first."
        )


def check_source(source: Any) -> None:
    """Refuse a source of a clip that is no path and no bytes.

    Raises:
        FoveateError: as said.
    """
    if not isinstance(source, (str, os.PathLike, bytes)):
        raise FoveateError(f"a clip is read from the path of a video file or its bytes, not {type(source).__name__}.")


def check_fps(fps: Any, optional: bool = False) -> None:
    """Refuse a frame rate that is no number above 0; with `optional`, None is one.

    Raises:
        FoveateError: as said.
    """
    if not (isinstance(fps, Real) and 0 < fps < math.inf) and not (optional and fps is None):
        possible = "above 0, or None" if optional else "above 0"
        raise FoveateError(f"fps is a number of frames per second {possible}, not {fps!r}.")


def shown(source: Any) -> str:
    """Name a source of a clip in a message."""
    return repr(os.fsdecode(source)[:200]) if isinstance(source, (str, os.PathLike)) else "the given video"
