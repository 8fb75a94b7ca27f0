"""A model that fails while it answers: nobody waits for ever, and the server says what became of it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest
import torch
from PIL import Image

from foveate.integrations.ray.cluster import Model
from foveate.integrations.ray.pool import Replica
from foveate.serving import Limits
from foveate.serving.generation import FirstToken, Sampling
from foveate.serving.limits import EngineDeadError
from tests.serving.live_server import ANSWER, EXAMPLES, PLAN, TOTAL, Served, asking, data_uri, running, wait_until

RECEIPT = data_uri((EXAMPLES / "receipt.png").read_bytes())
QUESTION = asking(TOTAL, RECEIPT)


@contextmanager
def failing(model: Any, error: BaseException) -> Iterator[threading.Event]:
    """The model answers its second step from now with an error, once the event is set."""
    steps, let = 0, threading.Event()

    def step(*_: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == 2:
            assert let.wait(60)
            raise error

    hook = model.get_decoder().register_forward_pre_hook(step)
    try:
        yield let
    finally:
        let.set()
        hook.remove()


def post(server: Served, **more: Any) -> httpx.Response:
    body = {"model": "embedded", "messages": QUESTION, **more}
    return httpx.post(f"{server.address}/v1/chat/completions", json=body, timeout=60)


def health(server: Served) -> tuple[int, str]:
    found = httpx.get(f"{server.address}/health")
    return found.status_code, found.json()["status"]


def test_a_request_on_which_the_model_fails_gets_500_and_the_next_its_answer(embedded: Any) -> None:
    with running(*embedded, plan="fastv:50%@2") as server:
        expected = post(server).json()["choices"]
        with failing(server.engine.model, RuntimeError("a fault of the test")) as let:
            let.set()
            answer = post(server)
        assert answer.status_code == 500 and "see its log" in answer.json()["error"]["message"]
        assert health(server) == (200, "ok") and post(server).json()["choices"] == expected


@pytest.mark.parametrize("error", [SystemExit(1), torch.AcceleratorError("a fault of the test"), "restore"])
def test_when_the_thread_fails_everyone_is_told(embedded: Any, error: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(*embedded, plan="fastv:50%@2") as server, ThreadPoolExecutor(4) as pool:
        if error == "restore":  # a plan that cannot be taken off again leaves a model that nobody knows
            post(server, max_tokens=1)

            def stuck() -> None:
                raise RuntimeError("a second fault of the test")

            monkeypatch.setattr(server.engine._handle, "restore", stuck)
            error = RuntimeError("a fault of the test")
        with failing(server.engine.model, error) as let:
            pieces = server.client().chat.completions.create(model="embedded", messages=QUESTION, stream=True)
            assert next(pieces).choices[0].delta.role == "assistant"
            waiting = [pool.submit(post, server, max_tokens=1 + number) for number in range(3)]
            wait_until(lambda: server.engine.state["waiting"] == 3)
            let.set()
            with pytest.raises(openai.APIError, match="the model of this server has failed"):
                list(pieces)
        for answer in [*(one.result() for one in waiting), post(server)]:
            assert answer.status_code == 503
            assert "the model of this server has failed" in answer.json()["error"]["message"]
        assert health(server) == (503, "failed")
        values = httpx.get(f"{server.address}/metrics").text.splitlines()
        assert "foveate_queue 0.0" in values and "foveate_running 0.0" in values
        assert json.loads(httpx.get(f"{server.address}/v1/models").text)["data"]


def test_a_replica_whose_thread_fails_says_so_and_is_no_longer_healthy() -> None:
    replica = Replica(Model(), Limits(), cpus=1)
    picture = Image.open(EXAMPLES / "receipt.png")
    content = [{"type": "image", "image": picture}, {"type": "text", "text": TOTAL}]

    async def asked() -> list[Any]:
        pieces = replica.answer([{"role": "user", "content": content}], PLAN, None, Sampling(), ())
        return [piece async for piece in pieces]

    *pieces, result = asyncio.run(asked())
    assert isinstance(pieces[0], FirstToken) and "".join(piece.text for piece in pieces[1:]) == result.text == ANSWER
    replica.check_health()
    with failing(replica.engine.model, SystemExit(1)) as let:
        let.set()
        with pytest.raises(EngineDeadError):  # which makes the server ask another replica
            asyncio.run(asked())
    with pytest.raises(EngineDeadError):  # which makes Ray Serve begin a new one
        replica.check_health()
