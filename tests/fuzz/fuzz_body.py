"""Bodies of requests, and the images that they name: what a server may read and whom it may ask.

The one part that does not run is the download itself: in its place stands the question whether the host to which
httpx would connect is one that was allowed, whatever foveate understood of the address.
"""

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

import httpx

from foveate.core.errors import FoveateError
from foveate.core.plan import parse_plan
from foveate.serving import Limits
from foveate.serving.limits import ByteCounter, Share
from foveate.serving.protocol import ChatRequest, parse, plan_of
from foveate.serving.sources import Sources
from tests.fuzz.targets import is_sentence
from tests.serving.hostile import bad_addresses, bad_bodies, bad_images
from tests.serving.live_server import EXAMPLES, asking, data_uri

ALLOWED = "allowed.example"
OWN = parse_plan("divprune:64")

_HELD = tempfile.TemporaryDirectory(prefix="foveate-fuzz-")
ROOT = Path(_HELD.name) / "root"
ROOT.mkdir()
(ROOT / "receipt.png").write_bytes((EXAMPLES / "receipt.png").read_bytes())
(Path(_HELD.name) / "outside.png").write_bytes((EXAMPLES / "receipt.png").read_bytes())
(ROOT / "link.png").symlink_to(Path(_HELD.name) / "outside.png")


class _Watched(Sources):
    async def _download(self, url: httpx.URL) -> bytes:
        address = httpx.Request("GET", url).url
        assert address.scheme in ("http", "https"), url
        assert address.host == ALLOWED and address.port is None, url
        raise httpx.ConnectError("nothing is downloaded here")

    def _file(self, url: str, *limits: Any) -> Path:
        path = super()._file(url, *limits)
        assert path == path.resolve() and path.is_relative_to(ROOT.resolve()), url
        return path


def _asking(url: str) -> bytes:
    return json.dumps({"model": "embedded", "messages": asking("?", url)}, ensure_ascii=False).encode()


SEEDS = [
    *(content for _, content in bad_bodies() if len(content) < 2**14),
    *(_asking(url) for _, url in bad_addresses() if len(url) < 200),
    *(_asking(data_uri(content)) for _, content in bad_images() if len(content) < 500),
    *(_asking(url) for url in ("file:receipt.png", "file:link.png", f"https://{ALLOWED}/a.png",
    f"http://{ALLOWED}:80/")),
    *(_asking(f"http://{text}/") for text in (f"{ALLOWED}\\@127.0.0.1", f"{ALLOWED}\t.evil.test", f"{ALLOWED}。evil")),
    json.dumps(
        {
            "model": "embedded",
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
            "max_tokens": 4, "temperature": 0.5, "top_p": 0.9, "seed": 3, "stop": ["\n"], "stream": True,
            "foveate": {"plan": "divprune:64"},
        }
    ).encode(),
]  # fmt: skip
WORDS = [
    *(f'"{name}":'.encode() for name in ChatRequest.model_fields),
    b'"role"', b'"user"', b'"content"', b'"type"', b'"text"', b'"image_url"', b'"url"', b"data:image/png;base64,",
    b"file:",
    b"http://", b"https://", b"@", b"\\\\", b"\\u0000", b"\\ud800", b"%2e", b"%00", b"..", b"127.0.0.1", b"[::1]",
    b"NaN", b"1e999",
    ALLOWED.encode(), b'"plan"', b'"budget"', b'"25%"', b"divprune:64", b"receipt.png", b"link.png",
]  # fmt: skip


def check(data: bytes) -> None:
    """See the module."""
    try:
        request = parse(data)
    except FoveateError as error:
        is_sentence(error)
        return
    assert len(request.conversation([None] * len(request.visuals))) == len(request.messages)
    try:
        plan_of(request.foveate, OWN)
    except FoveateError as error:
        is_sentence(error)
    if urls := [url for _, kind, url in request.visuals if kind == "image"]:
        asyncio.run(_open(urls[:4]))


async def _open(urls: list[str]) -> None:
    limits = Limits(pixels=2**20, image_bytes=2**20)
    sources = _Watched(ROOT, (ALLOWED,), limits)
    for url in urls:
        try:
            image = await sources.open(url, Share(ByteCounter(limits.memory)))
        except FoveateError as error:
            is_sentence(error)
        else:
            assert image.mode == "RGB"
