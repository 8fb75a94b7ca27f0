"""Writing of rendered clips as video files."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from foveate.core.errors import FoveateError
from foveate.core.files import atomic_write


def write_clip(
    target: str | os.PathLike[str] | io.BytesIO,
    frames: Iterable[np.ndarray],
    fps: int,
    *,
    codec: str = "mpeg4",
    keyframes: int | None = None,
) -> None:
    """Write frames as an MP4 file; they are encoded one after the other.

    Args:
        target: Path of the file, or a stream in memory.
        frames: (H, W, 3) uint8 each, of one size with even sides.
        fps: Frames per second.
        codec: Of FFmpeg; "libx264" plays in browsers.
        keyframes: Frames from one keyframe to the next; default: those of the codec.

    Raises:
        FoveateError: PyAV is not installed, or the file could not be written; nothing of it remains.
    """
    try:
        import av
    except ImportError as error:
        raise FoveateError("writing clips needs PyAV: pip install 'foveate[video]'.") from error
    if isinstance(target, io.BytesIO):
        _encode(av, target, frames, fps, codec, keyframes)
        return
    with atomic_write(target) as partial:
        _encode(av, str(partial), frames, fps, codec, keyframes)


def _encode(av: Any, file: Any, frames: Iterable[np.ndarray], fps: int, codec: str, keyframes: int | None) -> None:
    with av.open(file, "w", format="mp4") as container:
        stream: Any = container.add_stream(codec, rate=fps)
        stream.pix_fmt = "yuv420p"
        if keyframes is not None:
            stream.codec_context.gop_size = keyframes
        for number, pixels in enumerate(frames):
            if not number:
                stream.height, stream.width = pixels.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
