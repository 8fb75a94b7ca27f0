"""Frames of a video file, one by one, as a stream reads them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from foveate.core.errors import FoveateError


def frames_of(path: str | os.PathLike[str], fps: float = 2.0) -> Iterator[tuple[float, np.ndarray]]:
    """Decode a video file frame by frame; one frame is held at a time.

    Args:
        path: The file.
        fps: Frames per second that are read, at most those of the file.

    Yields:
        The time in seconds and the frame, (H, W, 3) uint8 in RGB.

    Raises:
        FoveateError: PyAV is not installed, there is no such file, it cannot be decoded, or fps is not above 0.
    """
    if not fps > 0:
        raise FoveateError(f"fps is a number of frames per second above 0, not {fps!r}.")
    try:
        import av
    except ImportError as error:
        raise FoveateError("clips need PyAV, which is not installed: pip install 'foveate[video]'.") from error
    name = repr(os.fsdecode(path))
    if not Path(path).is_file():
        raise FoveateError(f"no video file at {name}.")
    number = 0
    try:
        with av.open(os.fsdecode(path)) as container:
            if not container.streams.video:
                raise FoveateError(f"{name} has no video.")
            for frame in container.decode(container.streams.video[0]):
                # Compared with whole periods, so that rounded times of frames do not add up to a lower rate.
                if frame.time is not None and frame.time >= number / fps - 1e-3:
                    number = int(frame.time * fps + 1e-3 * fps) + 1
                    yield frame.time, frame.to_ndarray(format="rgb24")
    except (av.FFmpegError, ValueError, OSError) as error:
        if isinstance(error, FoveateError):
            raise
        reason = str(error).splitlines()[0].rstrip(".")
        raise FoveateError(f"{name} cannot be decoded as a video: {reason}.") from error
    if not number:
        raise FoveateError(f"{name} has no frames that can be decoded.")
