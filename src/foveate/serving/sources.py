"""Sources of images and videos that requests may use.

Data URIs always; files only under one folder, after links are followed; addresses only on hosts that were named, with
no redirect followed: a server that fetches what strangers name must not become their way into its network.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

import httpx
from PIL import Image

from foveate.clips import MAX_FRAMES, Clip, open_clip
from foveate.core.errors import FoveateError
from foveate.core.frames import FrameSampler
from foveate.core.plan import Step
from foveate.fetching import ARTICLES, Kind, download, shown
from foveate.images import data_of, open_image
from foveate.serving.limits import Limits, Share

_PORTS = {"http": 80, "https": 443}
#: Images and clips that are decoded at once; more would only take memory.
_AT_ONCE, _CLIPS_AT_ONCE = 4, 2


class Sources:
    """Loader of request images and videos.

    Args:
        root: Folder whose files may be named, as `file:///absolute/path` or `file:relative/path`; None: no files.
        hosts: Hosts that may be asked, `name` for the usual ports or `name:port`.
        limits: Of the server.

    Raises:
        FoveateError: the folder does not exist, or a host cannot be one.
    """

    def __init__(self, root: Path | None, hosts: Sequence[str], limits: Limits) -> None:
        if root is not None and not root.is_dir():
            raise FoveateError(f"there is no folder {str(root)!r} to take images from.")
        for host in hosts:
            if not re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[\w.-]+)(:\d{1,5})?", host):
                raise FoveateError(f"{host!r} is not a host; write a name such as images.example.org or name:8080.")
        self.root = None if root is None else root.resolve()
        self.hosts = frozenset(host.lower() for host in hosts)
        self.limits = limits
        self._decoding = asyncio.Semaphore(_AT_ONCE)
        self._decoding_clips = asyncio.Semaphore(_CLIPS_AT_ONCE)  # which takes seconds, and images do not wait for it

    async def open(self, url: str, share: Share) -> Image.Image:
        """Open the image at an address, upright and in RGB.

        Args:
            url: As a request names it.
            share: Counts the memory that the image takes.

        Raises:
            FoveateError: it may not be read, cannot be read, or is no image.
            BusyError: there is no memory for it now.
        """
        source = await self._source(url, "image", self.limits.image_bytes)
        async with self._decoding:
            image = await asyncio.to_thread(open_image, source, max_pixels=self.limits.pixels)
        share.take(3 * image.width * image.height)
        return image

    async def open_clip(
        self, url: str, share: Share, sampler: Step[FrameSampler] | None = None, question: str | None = None
    ) -> Clip:
        """Open the video at an address, and decode the frames that a plan chooses.

        Args:
            url: As a request names it.
            share: Counts the memory that the file and the frames take.
            sampler: Step of a plan that chooses frames; None: frames at even times.
            question: What is asked.

        Raises:
            FoveateError: it may not be read, cannot be read, is no video, or is above a limit.
            BusyError: there is no memory for it now.
        """
        source = await self._source(url, "video", self.limits.clip_bytes)
        if isinstance(source, bytes):
            share.take(len(source))
        async with self._decoding_clips:
            clip = await asyncio.to_thread(
                open_clip,
                source,
                sampler=sampler,
                question=question,
                max_frames=min(MAX_FRAMES, self.limits.clip_frames),
                limits=self.limits.clip,
            )
        share.take(clip.frames.nbytes)
        return clip

    async def _source(self, url: str, kind: Kind, max_bytes: int) -> bytes | Path:
        """The bytes of a file, or its path under the server's folder."""
        scheme = url.partition(":")[0].strip().lower()[:20]
        if scheme == "data":
            return data_of(url, max_bytes=max_bytes, kind=ARTICLES[kind])
        if scheme == "file":
            return await asyncio.to_thread(self._file, url, kind, max_bytes)
        if scheme in _PORTS:
            return await self._fetch(url, kind, max_bytes)
        raise FoveateError(
            f"{shown(url)} cannot be read; possible are data URIs, file: under the server's "
            "folder, and http(s): on its allowed hosts."
        )

    def _file(self, url: str, kind: Kind, max_bytes: int) -> Path:
        if self.root is None:
            raise FoveateError("this server does not read files (it was started without --files).")
        try:
            parts = urlsplit(url)
        except ValueError:  # an open bracket
            raise FoveateError(f"{shown(url)} is not an address.") from None
        if parts.netloc not in ("", "localhost"):
            raise FoveateError(f"{shown(url)} names another machine; write file:///path.")
        try:
            path = (self.root / unquote_to_bytes(parts.path).decode()).resolve(strict=True)
        except (OSError, ValueError, RuntimeError):  # missing, NUL bytes, no UTF-8, a loop of links
            path = None
        # One sentence for what is missing and for what lies elsewhere: an answer must not tell which files exist.
        if path is None or not path.is_relative_to(self.root) or not path.is_file():
            raise FoveateError(f"there is no file {shown(url)} under the folder that this server reads.")
        if path.stat().st_size > max_bytes:
            raise FoveateError(f"{ARTICLES[kind]} file may have at most {max_bytes / 2**20:g} MiB here.")
        return path

    async def _fetch(self, url: str, kind: Kind, max_bytes: int) -> bytes:
        try:
            address = httpx.URL(url)  # read by what will connect: two readers of one address may see two hosts
            host, port, default_port = address.host.lower(), address.port, _PORTS[address.scheme]
        except (httpx.InvalidURL, ValueError, KeyError):  # an open bracket, a port that is none; blanks around http
            raise FoveateError(f"{shown(url)} is not an address.") from None
        name = f"[{host}]" if ":" in host else host
        usual = port in (None, default_port)
        if not (f"{name}:{port or default_port}" in self.hosts or (usual and name in self.hosts)):
            raise FoveateError(f"this server does not fetch from {shown(name)}; send the {kind} as a data URI.")
        if address.userinfo:
            raise FoveateError("an address with a user name is not fetched.")
        return await download(address, kind=kind, max_bytes=max_bytes, seconds=self.limits.fetch_seconds)
