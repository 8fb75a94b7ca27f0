"""Video files that tests write: frames of one grey value each."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def save_clip(path: Path, frames: int, fps: int = 4, size: tuple[int, int] = (32, 16)) -> Path:
    """Write a video without loss; the frame with number n has the grey value 4 * n."""
    import av

    width, height = size
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "bgr0"
        for number in range(frames):
            grey = np.full((height, width, 3), 4 * number, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24").reformat(format="bgr0")))
        container.mux(stream.encode())
    return path
