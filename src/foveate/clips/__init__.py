"""Loading of clips: frames of a video file that a method chooses, decoded when they are needed.

Memory does not grow with the length of the file, and where few frames of a long file are read, only what lies between
the keyframe before each of them and itself is decoded.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from numbers import Integral
from typing import Any, Literal

import numpy as np

from foveate.clips.clip import MAX_PIXELS, NO_LIMITS, Clip, ClipLimits, check_fps, read_clip
from foveate.clips.given import GivenFrames
from foveate.clips.pyav import PyAVSource
from foveate.clips.torchcodec import TorchCodecSource
from foveate.core.errors import FoveateError
from foveate.core.frames import FrameSampler, FrameSource, even_times
from foveate.core.plan import Step

__all__ = [
    "ENDINGS",
    "FRAMES_PER_SECOND",
    "MAX_FRAMES",
    "MAX_PIXELS",
    "Clip",
    "ClipLimits",
    "VideoFile",
    "check_clip",
    "clip_of_frames",
    "is_clip",
    "open_clip",
]

#: Endings of files that are read as clips.
ENDINGS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")

#: Frames per second of a clip that are read without a plan that chooses frames, and the most of them; longer clips have
#: fewer per second.
FRAMES_PER_SECOND, MAX_FRAMES = 2.0, 32

Backend = Literal["pyav", "torchcodec"]
_SOURCES = {"pyav": PyAVSource, "torchcodec": TorchCodecSource}


class VideoFile(bytes):
    """The bytes of a video file, where a source may be an image as well."""


def is_clip(source: Any) -> bool:
    """Whether a source is a clip, the bytes of one, or the path of a video file, by its ending."""
    if isinstance(source, (Clip, VideoFile)):
        return True
    return isinstance(source, (str, os.PathLike)) and os.fsdecode(source).lower().endswith(ENDINGS)


def check_clip(path: str | os.PathLike[str]) -> None:
    """Refuse a video file whose frames cannot be read; of these the first one is decoded, and no other.

    Raises:
        FoveateError: see `open_clip`.
    """
    PyAVSource(path, NO_LIMITS)


def open_clip(
    source: str | os.PathLike[str] | bytes,
    *,
    sampler: Step[FrameSampler] | FrameSampler | None = None,
    question: str | None = None,
    times: Sequence[float] | None = None,
    max_frames: int = MAX_FRAMES,
    fps: float | None = FRAMES_PER_SECOND,
    limits: ClipLimits = NO_LIMITS,
    backend: Backend = "pyav",
) -> Clip:
    """Decode frames of a video file.

    Args:
        source: A file, or its bytes.
        sampler: Chooses the frames: a method of the site `frames`, or a step of a plan with its budget. None: frames at
            even times.
        question: What is asked about the clip, for samplers that read it.
        times: In place of a sampler: ascending seconds from the first frame; the frames that are shown then are read.
        max_frames: Without a sampler: most frames.
        fps: Without a sampler: frames per second; None: `max_frames` of any clip that has so many.
        limits: Refuse clips above them.
        backend: "torchcodec" decodes with TorchCodec, for trusted files alone: it also opens playlists that name other
            files and addresses.

    Raises:
        FoveateError: PyAV is not installed, there is no such file, it has no video that can be decoded, it is cut off
            or too long, its frames are too large or have no times, an argument is impossible, or the sampler cannot
            choose.
    """
    if backend not in _SOURCES:
        raise FoveateError(f"backend must be one of {', '.join(_SOURCES)}, not {backend!r}.")
    step = _step(sampler)
    _check_rate(max_frames, fps)
    opened = _SOURCES[backend](source, limits)
    if limits.seconds is not None and opened.duration > limits.seconds:
        raise FoveateError(
            f"{opened.name} takes {opened.duration:.1f} s, and a clip may take {limits.seconds:g} s here; cut it."
        )
    if times is not None:
        chosen = _ascending(times, "times")
    elif step is not None:
        chosen = _chosen(opened, step, question)
    else:
        wanted = max_frames if fps is None else min(max_frames, max(1, round(opened.duration * fps)))
        chosen = even_times(opened.duration, min(wanted, opened.count))
    composing = step.method if step is not None and times is None else None
    return read_clip(opened, chosen, opened.name, opened.backend, limits, composing)


def clip_of_frames(
    frames: Sequence[np.ndarray],
    timestamps: Sequence[float] | None = None,
    *,
    sampler: Step[FrameSampler] | FrameSampler | None = None,
    question: str | None = None,
) -> Clip:
    """Make a clip of frames that are decoded already.

    Args:
        frames: One (H, W, 3) array, uint8, RGB, for each frame, all of one size.
        timestamps: (T,) ascending seconds of the frames; None: two frames per second. Those of the clip count from the
            first of them.
        sampler: Chooses some of them, as in `open_clip`; None: all.
        question: What is asked about the clip, for samplers that read it.

    Raises:
        FoveateError: there is no frame, frames are no such arrays or differ in size, the times do not fit, there are
            too many pixels, or the sampler cannot choose.
    """
    given = GivenFrames(frames, timestamps, FRAMES_PER_SECOND)
    step = _step(sampler)
    times = [time for time, _ in given.read()] if step is None else _chosen(given, step, question)
    return read_clip(given, times, given.name, given.backend, NO_LIMITS, None if step is None else step.method)


def _step(sampler: Step[FrameSampler] | FrameSampler | None) -> Step[FrameSampler] | None:
    if sampler is None:
        return None
    method = sampler.method if isinstance(sampler, Step) else sampler
    if not isinstance(method, FrameSampler):
        raise FoveateError(
            "a sampler is a method that chooses frames, or its step in a plan, such as "
            f"Plan.of('uniform-frames:8').frame_step, not {sampler!r}."
        )
    return sampler if isinstance(sampler, Step) else Step(method)


def _check_rate(max_frames: Any, fps: Any) -> None:
    """Refuse numbers of frames of which no clip has any.

    Raises:
        FoveateError: as said.
    """
    if isinstance(max_frames, bool) or not isinstance(max_frames, Integral) or max_frames < 1:
        raise FoveateError(f"max_frames is a whole number of frames from 1 on, not {max_frames!r}.")
    check_fps(fps, optional=True)


def _chosen(source: FrameSource, step: Step[FrameSampler], question: str | None) -> list[float]:
    step.method.check_budget(step.budget)
    return _ascending(step.method.times(source, step.count(source.count), question), f"times of {step.method.name}")


def _ascending(times: Any, name: str) -> list[float]:
    """Times of frames as a list; decoding goes forward, so that an earlier one behind a later one would be left out.

    Raises:
        FoveateError: there is none, or they are no seconds from 0 on that ascend.
    """
    try:
        seconds = [float(time) for time in times]
    except (TypeError, ValueError):  # no numbers
        seconds = []
    if not seconds or not all(0 <= time < math.inf for time in seconds) or seconds != sorted(seconds):
        raise FoveateError(f"{name} must be ascending numbers of seconds from the first frame, at least one.")
    return seconds
