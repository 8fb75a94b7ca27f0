"""Frames of a video file, decoded with TorchCodec."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from foveate.clips.clip import ClipLimits, check_source, shown
from foveate.clips.given import scaled
from foveate.core.errors import FoveateError

#: Frames that are decoded at once.
AT_ONCE = 8


class TorchCodecSource:
    """Frames of a video file, decoded with TorchCodec when they are asked for.

    As `foveate.clips.pyav.PyAVSource`, for files that you trust: TorchCodec opens whatever FFmpeg reads, playlists that
    name other files and addresses included. It keeps an index of the file's frames in memory (`seek_mode="exact"`).

    Args:
        source: the path of a file, or its bytes.
        limits: of one frame, checked before decoding. The time of decoding is not limited.

    Raises:
        FoveateError: TorchCodec is not installed, the source is no path and no bytes, there is no such file, it has no
            video or no frames, or its frames are too large.
    """

    backend = "torchcodec"

    def __init__(self, source: str | os.PathLike[str] | bytes, limits: ClipLimits) -> None:
        try:
            decoders: Any = importlib.import_module("torchcodec.decoders")
        except (ImportError, RuntimeError, OSError) as error:  # the two others: it finds no FFmpeg
            raise FoveateError("this reader of clips is not installed: pip install torchcodec, and FFmpeg.") from error
        check_source(source)
        self.name = shown(source)
        if not isinstance(source, bytes) and not Path(source).is_file():
            raise FoveateError(f"no video file at {self.name}.")
        try:
            self._decoder = decoders.VideoDecoder(
                source if isinstance(source, bytes) else os.fsdecode(source), dimension_order="NHWC"
            )
        except (ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise FoveateError(f"{self.name} cannot be decoded as a video: {reason}.") from error
        stated = self._decoder.metadata
        width, height, self.count = stated.width or 0, stated.height or 0, stated.num_frames or 0
        if width * height > limits.frame_pixels:
            raise FoveateError(
                f"frames of {self.name} have {width} x {height} pixels, above the limit of "
                f"{limits.frame_pixels / 1e6:.3g} megapixels; scale it down first."
            )
        self._first, self._end = stated.begin_stream_seconds or 0.0, stated.end_stream_seconds or 0.0
        self.duration = self._end - self._first
        if not self.count or self.duration <= 0:
            raise FoveateError(f"{self.name} has no frames that can be decoded.")
        self.fps = stated.average_fps or self.count / self.duration

    def read(
        self, times: Iterable[float] | None = None, max_side: int | None = None
    ) -> Iterator[tuple[float, np.ndarray]]:
        """Decode frames in order; see `foveate.core.frames.FrameSource.read`.

        Raises:
            FoveateError: a frame cannot be decoded.
        """
        given = None
        try:
            for batch in self._all() if times is None else self._at(times):
                for seconds, pixels in zip(batch.pts_seconds.tolist(), batch.data.numpy(), strict=True):
                    if seconds != given:
                        given = seconds
                        yield seconds - self._first, scaled(pixels, max_side)
        except RuntimeError as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise FoveateError(f"{self.name} cannot be decoded as a video: {reason}.") from error

    def _all(self) -> Iterator:
        for start in range(0, self.count, AT_ONCE):
            yield self._decoder.get_frames_in_range(start, min(start + AT_ONCE, self.count))

    def _at(self, times: Iterable[float]) -> Iterator:
        # The end is excluded; containers round times, to milliseconds at worst.
        wanted = [min(self._first + time + 1e-3, self._end - 1e-6) for time in times]
        for start in range(0, len(wanted), AT_ONCE):
            yield self._decoder.get_frames_played_at(wanted[start : start + AT_ONCE])
