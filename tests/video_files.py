"""Video files that tests write: frames of one grey value each, or of the pixels that they name."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import numpy as np


def save_clip(path: Path, frames: int, fps: int = 4, size: tuple[int, int] = (32, 16), **options: Any) -> Path:
    """Write a video without loss; the frame with number n has the grey value 4 * n. See `save_frames`."""
    width, height = size
    greys = (np.full((height, width, 3), 4 * number % 256, dtype=np.uint8) for number in range(frames))
    return save_frames(path, greys, fps, **options)


def save_frames(
    path: Path,
    frames: Iterable[np.ndarray],
    fps: int = 4,
    *,
    times: Sequence[float] | None = None,
    codec: str = "ffv1",
    keyframes: int = 12,
    **container_options: str,
) -> Path:
    """Write a video, without loss by default.

    Args:
        path: the file; its ending names the container.
        frames: (H, W, 3) uint8 each, of one size.
        fps: frame rate.
        times: seconds of every frame, where the frame rate varies.
        codec: such as "mpeg4", with loss and with a keyframe every `keyframes` frames.
        keyframes: frames from one keyframe to the next.
        container_options: of FFmpeg.
    """
    import av

    with av.open(str(path), "w", options=container_options) as container:
        streams: list[Any] = []
        for number, pixels in enumerate(frames):
            if not streams:
                streams.append(stream := cast("Any", container.add_stream(codec, rate=fps)))
                stream.height, stream.width = pixels.shape[:2]
                stream.pix_fmt = "bgr0" if codec == "ffv1" else "yuv420p"
                stream.codec_context.gop_size = keyframes
                if times is not None:
                    stream.codec_context.time_base = Fraction(1, 1000)
            (stream,) = streams
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=stream.pix_fmt)
            if times is not None:
                frame.pts, frame.time_base = round(1000 * times[number]), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode())
    return path


def save_sound(path: Path, seconds: float = 1.0) -> Path:
    """Write a file of silence, without video."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        for _ in range(round(seconds * 16000 / 1024)):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 16000
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def turn_clockwise(path: Path) -> Path:
    """Make an MP4 file state that its frames are shown after a turn by 90 degrees clockwise, as of a phone."""
    data = bytearray(path.read_bytes())
    header = data.index(b"tkhd") + 4
    matrix = header + (40 if data[header] == 0 else 52)
    one = 1 << 16
    data[matrix : matrix + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path
