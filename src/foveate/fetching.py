"""Fetching of files from addresses, with limits on bytes, time and redirects.

The server and `foveate.ask` share it. Which addresses may be asked is decided before: the server asks hosts that it was
started with, `ask` the address that its user typed.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from foveate.core.errors import FoveateError

#: Limits of a file that `fetch` takes: bytes, seconds in all, and redirects.
MAX_BYTES, SECONDS, REDIRECTS = 20 * 2**20, 30.0, 5
#: The same of video files.
MAX_VIDEO_BYTES, VIDEO_SECONDS = 200 * 2**20, 300.0

Kind = Literal["image", "video"]
ARTICLES = {"image": "an image", "video": "a video"}


def is_address(source: Any) -> bool:
    """Whether a source is an http or https address."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def fetch(address: str, *, max_bytes: int = MAX_BYTES, seconds: float = SECONDS, kind: Kind = "image") -> bytes:
    """Fetch a file from an http or https address, through proxies of the environment and up to five redirects.

    Any host is asked, also of the local network: pass on addresses of strangers only if that is meant.

    Raises:
        FoveateError: httpx is not installed, the address cannot be read or answers with something else, or the file is
            too long or too slow.
    """

    def work() -> bytes:
        return asyncio.run(
            download(address, kind=kind, max_bytes=max_bytes, seconds=seconds, redirects=REDIRECTS, proxies=True)
        )

    # In another thread, since notebooks and servers have an event loop in this one.
    with ThreadPoolExecutor(max_workers=1) as threads:
        return threads.submit(work).result()


async def download(
    address: Any,
    *,
    max_bytes: int,
    seconds: float,
    kind: Kind = "image",
    redirects: int = 0,
    proxies: bool = False,
) -> bytes:
    """Fetch a file from an address.

    Args:
        address: http or https, as text or `httpx.URL`.
        kind: "image" or "video", for the request and for messages.
        max_bytes: largest file; a longer one is abandoned where the limit is passed.
        seconds: limit for everything.
        redirects: how many are followed.
        proxies: whether the environment may name proxies. A proxy reaches hosts that a check of the address does not
            know, so that servers must not use one.

    Raises:
        FoveateError: see `fetch`.
    """
    try:
        import httpx
    except ImportError as error:
        raise FoveateError("addresses need httpx, which is not installed: pip install 'foveate[serve]'.") from error
    try:
        url = httpx.URL(address)
        host = f"[{url.host}]" if ":" in url.host else url.host
    except (httpx.InvalidURL, ValueError):
        raise FoveateError(f"{shown(str(address))} is not an address.") from None
    try:
        async with asyncio.timeout(seconds):
            client = httpx.AsyncClient(
                follow_redirects=redirects > 0, max_redirects=redirects, trust_env=proxies, timeout=seconds
            )
            async with client, client.stream("GET", url, headers={"accept": f"{kind}/*"}) as response:
                if response.status_code != 200:
                    status = response.status_code
                    raise FoveateError(
                        f"the address answers with status {status}, not with {ARTICLES[kind]}: {shown(str(url))}."
                    )
                data = bytearray()
                async for piece in response.aiter_bytes():
                    data += piece
                    if len(data) > max_bytes:
                        raise FoveateError(f"{ARTICLES[kind]} file may have at most {max_bytes / 2**20:g} MiB here.")
                return bytes(data)
    except TimeoutError:
        raise FoveateError(f"{shown(host)} took longer than {seconds:g} s.") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise FoveateError(f"{shown(host)} could not be read: {type(error).__name__}.") from None


def shown(text: str) -> str:
    """Quote an address for a message, its beginning if it is long."""
    return repr(text if len(text) <= 80 else text[:77] + "...")
