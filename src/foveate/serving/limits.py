"""Resource limits per request and in total."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, fields

from foveate.clips import ClipLimits
from foveate.core.errors import FoveateError


@dataclass(frozen=True)
class Limits:
    """Limits of a server.

    Args:
        body: Bytes of a request.
        images: Images of a request.
        image_bytes: Bytes of one image file.
        pixels: Pixels of one image, or of a frame of a clip; checked before it is decoded.
        clips: Clips of a request.
        clip_bytes: Bytes of one video file.
        clip_seconds: Length of a clip.
        clip_frames: Frames of a clip that are read.
        clip_pixels: Pixels of these frames together.
        characters: Characters of text of a request.
        tokens: Tokens of an answer, and the number where a request names none.
        queue: Maximum number of waiting requests; others are asked to retry.
        batch: Requests that are answered at once.
        batch_pixels: Pixels of the images that are encoded at once; a single request may have more.
        memory: Bytes of bodies and decoded images that are held for all requests.
        read_seconds: To send a request; also the longest pause of a client that takes its answer.
        fetch_seconds: To fetch an image or a video from another server.
        decode_seconds: To read a video and decode its frames.

    Raises:
        FoveateError: a limit is not positive.
    """

    body: int = 32 * 2**20
    images: int = 16
    image_bytes: int = 20 * 2**20
    pixels: int = 50_000_000
    clips: int = 4
    clip_bytes: int = 64 * 2**20
    clip_seconds: float = 600
    clip_frames: int = 64
    clip_pixels: int = 100_000_000
    characters: int = 100_000
    tokens: int = 512
    queue: int = 256
    batch: int = 8
    batch_pixels: int = 32_000_000
    memory: int = 2 * 2**30
    read_seconds: float = 30
    fetch_seconds: float = 10
    decode_seconds: float = 30

    @property
    def clip(self) -> ClipLimits:
        """Those of one clip."""
        return ClipLimits(self.clip_frames, self.clip_pixels, self.pixels, self.clip_seconds, self.decode_seconds)

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) <= 0:
                raise FoveateError(f"the limit {field.name!r} must be more than 0, not {getattr(self, field.name)}.")


class BusyError(Exception):
    """The server is at capacity; the client should retry."""


class EngineDeadError(Exception):
    """The engine that should have answered the request has failed."""


class ByteCounter:
    """Thread-safe count of the bytes that requests hold.

    Args:
        most: How many may be held.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.bytes = 0
        self._lock = threading.Lock()

    def take(self, count: int) -> None:
        """Add bytes.

        Raises:
            BusyError: there would be too many.
        """
        with self._lock:
            if self.bytes + count > self.most:
                raise BusyError(f"requests use all of the {self.most >> 20} MiB available; retry later.")
            self.bytes += count

    def give(self, count: int) -> None:
        """Subtract bytes."""
        with self._lock:
            self.bytes -= count

    @contextmanager
    def share(self) -> Generator[Share]:
        """Count the bytes of one request, which are released when the context exits."""
        share = Share(self)
        try:
            yield share
        finally:
            self.give(share.bytes)


class Share:
    """Bytes held by one request."""

    def __init__(self, held: ByteCounter) -> None:
        self._held = held
        self.bytes = 0

    def take(self, count: int) -> None:
        """Add bytes; see `ByteCounter.take`."""
        self._held.take(count)
        self.bytes += count
