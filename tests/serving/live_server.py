"""A server in this process, asked over real HTTP."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from openai import OpenAI
from PIL import Image

from foveate import shipped
from foveate.core.plan import Plan
from foveate.serving import TRANSPORT, Engine, Limits, Sources, build, listening_socket

EXAMPLES = Path(__file__).parents[2] / "examples"
#: The demonstration: what the embedded model answers about `receipt.png`, without a plan and with this one.
TOTAL, ANSWER = shipped.examples()[0].questions[0]
PLAN = shipped.demonstration_plan()


def data_uri(image: Image.Image | bytes, kind: str = "png") -> str:
    """An image, or the bytes of a file, as a data URI."""
    if isinstance(image, Image.Image):
        stream = io.BytesIO()
        image.save(stream, "PNG")
        image = stream.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def asking(question: str, *urls: str) -> list[dict[str, Any]]:
    """Messages of one question about images."""
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*images, {"type": "text", "text": question}]}]


class Served:
    """A running server."""

    def __init__(self, engine: Any, address: str) -> None:
        self.engine, self.address = engine, address

    def client(self, key: str = "none") -> OpenAI:
        """The official client."""
        return OpenAI(base_url=f"{self.address}/v1", api_key=key, max_retries=0)


@contextmanager
def running(
    model: Any,
    processor: Any,
    limits: Limits | None = None,
    *,
    root: Path | None = None,
    hosts: tuple[str, ...] = (),
    plan: str | None = None,
    api_key: str | None = None,
    origins: tuple[str, ...] = (),
) -> Iterator[Served]:
    """A server in this process, at a free port."""
    engine = Engine(model, processor, limits or Limits())
    with answering(engine, root=root, hosts=hosts, plan=plan, api_key=api_key, origins=origins) as served:
        yield served


@contextmanager
def answering(
    engine: Any,
    *,
    root: Path | None = None,
    hosts: tuple[str, ...] = (),
    plan: str | None = None,
    api_key: str | None = None,
    origins: tuple[str, ...] = (),
) -> Iterator[Served]:
    """A server of what answers requests."""
    app = build(
        engine,
        Sources(root, hosts, engine.limits),
        name="embedded",
        plan=None if plan is None else Plan.of(plan),
        api_key=api_key,
        origins=origins,
    )
    config = uvicorn.Config(app, port=0, log_level="critical", timeout_graceful_shutdown=5, **TRANSPORT)
    server = uvicorn.Server(config)
    socket = listening_socket(config)
    thread = threading.Thread(target=server.run, args=([socket],), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield Served(engine, f"http://127.0.0.1:{socket.getsockname()[1]}")
    finally:
        server.should_exit = True
        thread.join(timeout=60)
        assert not thread.is_alive()


def wait_until(true: Callable[[], bool], seconds: float = 30) -> None:
    """Wait for something that other threads do; what never comes fails."""
    late = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < late, "it did not come about"
        time.sleep(0.02)
