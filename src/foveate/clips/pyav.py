"""Frames of a video file, decoded with PyAV."""

from __future__ import annotations

import io
import math
import os
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from foveate.clips.clip import ClipLimits, check_source, shown
from foveate.core.errors import FoveateError

#: Containers whose keyframes are looked up, as FFmpeg names them: they hold an index, or every packet has its time.
INDEXED = ("avi", "matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2")
#: Containers that are opened. Others are refused: a playlist (HLS, DASH, concat) in a file of any name would make
#: FFmpeg open other files and addresses. MPEG streams are read from their beginning: after a jump, times are guessed.
CONTAINERS = (*INDEXED, "m4v", "mpeg", "mpegts", "mpegvideo")
_OPTIONS = {"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "file"}
#: A file is cut off where its data end before the length in its header by more than so many seconds and this part.
CUT_SECONDS, CUT_PART = 1.0, 0.05


class PyAVSource:
    """Frames of a video file, decoded with PyAV when they are asked for; see `foveate.core.frames.FrameSource`.

    Where few frames of a long file are read, decoding goes on at the last keyframe before each of them. Times are those
    of the file (presentation timestamps), so that a frame rate may vary; frames are upright, by the rotation that the
    file states; frames that change their size within a file get that of the first.

    Args:
        source: the path of a file, or its bytes.
        limits: of one frame, checked before decoding, and of the time that reading takes from now on.

    Raises:
        FoveateError: PyAV is not installed, the source is no path and no bytes, there is no such file, it is not a
            video file or has no frames, its frames are too large or have no times, it is cut off, or reading it takes
            too long.
    """

    backend = "pyav"

    def __init__(self, source: str | os.PathLike[str] | bytes, limits: ClipLimits) -> None:
        try:
            import av
        except ImportError as error:
            raise FoveateError("clips need PyAV, which is not installed: pip install 'foveate[video]'.") from error
        check_source(source)
        self._av: Any = av
        self._source, self._limits = source, limits
        self._until = math.inf if limits.decode_seconds is None else time.monotonic() + limits.decode_seconds
        self.name = shown(source)
        with self._opened() as (container, stream):
            width, height = stream.width, stream.height
            if width * height > limits.frame_pixels:
                raise FoveateError(
                    f"frames of {self.name} have {width} x {height} pixels, above the limit of "
                    f"{limits.frame_pixels / 1e6:.3g} megapixels; scale it down first."
                )
            first, end = self._extent(container, stream)
            rate = stream.average_rate or stream.guessed_rate
        self._first = first
        self.duration = end - first
        self.fps = float(rate) if rate else self._mean_rate()
        self.count = max(1, round(self.duration * self.fps))

    def read(
        self, times: Iterable[float] | None = None, max_side: int | None = None
    ) -> Iterator[tuple[float, np.ndarray]]:
        """Decode frames in order; see `foveate.core.frames.FrameSource.read`.

        Raises:
            FoveateError: a frame cannot be decoded.
        """
        size: tuple[int, int] | None = None
        with self._opened() as (container, stream):
            for frame in self._decoded(container, stream) if times is None else self._at(times, container, stream):
                if size is None:
                    scale = 1.0 if max_side is None else min(1.0, max_side / max(frame.width, frame.height))
                    size = max(1, round(frame.width * scale)), max(1, round(frame.height * scale))
                pixels = frame.to_ndarray(format="rgb24", width=size[0], height=size[1])
                turns = round(frame.rotation / 90) % 4  # counter-clockwise
                yield frame.time - self._first, np.rot90(pixels, turns) if turns else pixels

    @contextmanager
    def _opened(self) -> Generator[tuple[Any, Any]]:
        """Open the file: its container and its video, with errors of FFmpeg as one sentence."""
        source = self._source
        try:
            if not isinstance(source, bytes) and not Path(source).is_file():
                raise FoveateError(f"no video file at {self.name}.")
            file = io.BytesIO(source) if isinstance(source, bytes) else os.fsdecode(source)
            with self._av.open(file, container_options=_OPTIONS) as container:
                cover = self._av.stream.Disposition.attached_pic
                streams = [stream for stream in container.streams.video if not stream.disposition & cover]
                if not streams or streams[0].codec_context is None:
                    raise FoveateError(f"{self.name} has no video.")
                yield container, streams[0]
        except (self._av.FFmpegError, ValueError, OSError) as error:
            if isinstance(error, FoveateError):
                raise
            reason = (getattr(error, "strerror", None) or str(error)).splitlines()[0].rstrip(".")
            raise FoveateError(f"{self.name} cannot be decoded as a video: {reason}.") from error

    def _extent(self, container: Any, stream: Any) -> tuple[float, float]:
        """Return the time of the first frame and the end of the last one, in seconds of the file."""
        first = next(iter(self._decoded(container, stream)), None)
        if first is None:
            raise FoveateError(f"{self.name} has no frames that can be decoded.")
        if stream.duration:
            announced, origin = float(stream.duration * stream.time_base), first.time
        else:  # Matroska states the length of its time axis, on which video may begin late
            announced, origin = (container.duration or 0) / 1e6, min(first.time, 0.0)
        end = last = 0.0
        if announced:  # reads what follows the last keyframe
            end, last = self._ends(container, stream, origin + announced)
        if not end or self._is_cut(announced, last - origin):  # reads the whole file, without decoding
            end, last = self._ends(container, stream, first.time)
        if self._is_cut(announced, last - origin):
            raise FoveateError(
                f"{self.name} is cut off: its header says {announced:.1f} s, and its data end after "
                f"{last - origin:.1f} s; get the whole file, or convert what is there."
            )
        return first.time, max(end, first.time + 1e-3)

    @staticmethod
    def _is_cut(announced: float, end: float) -> bool:
        return announced - end > max(CUT_SECONDS, CUT_PART * announced)

    def _ends(self, container: Any, stream: Any, start: float) -> tuple[float, float]:
        """Read packets to the end of the file: the end of the last frame, and that of the last packet of any stream."""
        ends = [0.0, 0.0]
        try:
            container.seek(round(start * 1e6))
            for packet in container.demux():
                self._check_time()
                ticks = packet.pts if packet.pts is not None else packet.dts
                if ticks is not None and packet.size:
                    end = float((ticks + (packet.duration or 0)) * packet.time_base)
                    ends[1] = max(ends[1], end)
                    if packet.stream_index == stream.index:
                        ends[0] = max(ends[0], end)
        except (
            self._av.FFmpegError
        ):  # a file that cannot be searched, or damaged data: what was read before them counts
            pass
        return ends[0], ends[1]

    def _mean_rate(self) -> float:
        """Count frames, without decoding: their mean rate, for files that state none."""
        with self._opened() as (container, stream):
            return max(1, sum(packet.size > 0 for packet in container.demux(stream))) / self.duration

    def _check_time(self) -> None:
        if time.monotonic() > self._until:
            raise FoveateError(
                f"reading {self.name} takes longer than {self._limits.decode_seconds:g} s; send a shorter clip."
            )

    def _decoded(self, container: Any, stream: Any) -> Iterator[Any]:
        """Decode frames in order of time."""
        for frame in container.decode(stream):
            self._check_time()
            if frame.pts is None:
                raise FoveateError(f"frames of {self.name} have no times; convert it to MP4 first.")
            yield frame

    def _at(self, times: Iterable[float], container: Any, stream: Any) -> Iterator[Any]:
        """Decode the frames that are shown at these times, each once.

        A second reader of the file looks where the last keyframe before a time is, which costs no decoding.
        """
        with self._opened() as (keyframes, keyframe_stream):
            yield from self._reached(times, container, stream, keyframes, keyframe_stream)

    def _reached(
        self, times: Iterable[float], container: Any, stream: Any, keyframes: Any, keyframe_stream: Any
    ) -> Iterator[Any]:
        tick = float(stream.time_base)
        decoded = self._decoded(container, stream)
        frame, following, given = None, next(decoded, None), None
        for seconds in times:
            target = self._first + seconds + tick / 2  # times of containers are rounded to ticks
            if following is not None and following.time <= target:
                keyframe = self._keyframe_before(target, keyframes, keyframe_stream)
                if keyframe is not None and keyframe > following.time:
                    container.seek(int(keyframe / tick), stream=stream)
                    decoded = self._decoded(container, stream)
                    frame, following = None, next(decoded, None)
            while following is not None and following.time <= target:
                frame, following = following, next(decoded, None)
            if frame is None:  # before the first frame
                frame = following
            if frame is not None and frame.time != given:
                given = frame.time
                yield frame

    def _keyframe_before(self, target: float, container: Any, stream: Any) -> float | None:
        """Return the time of the last keyframe up to a time; None where the file cannot say."""
        if container.format.name not in INDEXED:
            return None
        try:
            container.seek(int(target / stream.time_base), stream=stream)
            for packet in container.demux(stream):
                if packet.is_keyframe and packet.pts is not None:
                    keyframe = float(packet.pts * stream.time_base)
                    return keyframe if keyframe <= target else None
        except self._av.FFmpegError:
            return None
        return None
