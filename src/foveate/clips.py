"""Loading of clips: frames at even times of a video file, decoded with PyAV."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foveate.core.errors import FoveateError

#: Endings of files that are read as clips.
ENDINGS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")

#: Frames per second of a clip that are taken, and the most of them; longer clips have fewer per second.
FRAMES_PER_SECOND, MAX_FRAMES = 2.0, 32

#: Most pixels of all frames together, 0.5 GB of RGB.
MAX_PIXELS = 180_000_000


@dataclass(frozen=True)
class Clip:
    """Frames of a clip.

    Attributes:
        frames: ``(T, H, W, 3)`` uint8, in RGB.
        metadata: where they come from, as `transformers.video_utils.VideoMetadata` takes it: ``frames_indices`` are the
            numbers of the frames in the file, of ``total_num_frames`` at ``fps``.
    """

    frames: np.ndarray
    metadata: dict[str, Any]

    @property
    def size(self) -> tuple[int, int]:
        """``(width, height)`` in pixels of a frame."""
        return self.frames.shape[2], self.frames.shape[1]


def is_clip(source: Any) -> bool:
    """Whether a source is the path of a video file, by its ending."""
    return isinstance(source, (str, os.PathLike)) and os.fsdecode(source).lower().endswith(ENDINGS)


def open_clip(
    path: str | os.PathLike[str], *, max_frames: int = MAX_FRAMES, fps: float | None = FRAMES_PER_SECOND
) -> Clip:
    """Decode frames at even times of a video file.

    Args:
        path: The file.
        max_frames: Most frames.
        fps: Frames per second; None: `max_frames` of any clip that has so many.

    Raises:
        FoveateError: PyAV is not installed, there is no such file, it has no video that can be decoded, or its frames
            are too large.
    """
    try:
        import av
    except ImportError as error:
        raise FoveateError("clips need PyAV, which is not installed: pip install 'foveate[video]'.") from error
    name = repr(os.fsdecode(path))
    if not Path(path).is_file():
        raise FoveateError(f"no video file at {name}.")
    try:
        with av.open(os.fsdecode(path)) as container:
            if not container.streams.video:
                raise FoveateError(f"{name} has no video.")
            stream = container.streams.video[0]
            rate, total = float(stream.average_rate or 0), _count(container, stream)
            if not rate or not total:
                raise FoveateError(f"{name} does not say how long it is; convert it to MP4 first.")
            wanted = _even(total, max_frames if fps is None else min(max_frames, max(1, round(total / rate * fps))))
            if stream.width * stream.height * len(wanted) > MAX_PIXELS:
                raise FoveateError(
                    f"{len(wanted)} frames of {stream.width} x {stream.height} pixels are above the limit of "
                    f"{MAX_PIXELS / 1e6:.3g} megapixels; scale the clip {name} down first."
                )
            frames = _decoded(container, stream, wanted)
    except (av.FFmpegError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise FoveateError(f"{name} cannot be decoded as a video: {reason}.") from error
    if not frames:
        raise FoveateError(f"{name} has no frames that can be decoded.")
    metadata = {
        "total_num_frames": total,
        "fps": rate,
        "width": stream.width,
        "height": stream.height,
        "duration": total / rate,
        "video_backend": "pyav",
        "frames_indices": wanted[: len(frames)],
    }
    return Clip(np.stack(frames), metadata)


def _count(container: Any, stream: Any) -> int:
    """Return the number of frames of a stream; where the file does not state it, by its duration."""
    if stream.frames:
        return stream.frames
    ticks, unit = (stream.duration, stream.time_base) if stream.duration else (container.duration or 0, 1e-6)
    seconds = float(ticks * unit)
    return round(seconds * float(stream.average_rate or 0))


def _even(total: int, count: int) -> list[int]:
    """Return `count` different places among `total`, in the middle of equal parts."""
    count = min(count, total)
    return [int((place + 0.5) * total / count) for place in range(count)]


def _decoded(container: Any, stream: Any, wanted: list[int]) -> list[np.ndarray]:
    """Decode the frames with these numbers; fewer, if the file ends before the last."""
    frames: list[np.ndarray] = []
    for number, frame in enumerate(container.decode(stream)):
        if number == wanted[len(frames)]:
            frames.append(frame.to_ndarray(format="rgb24"))
            if len(frames) == len(wanted):
                break
    return frames
