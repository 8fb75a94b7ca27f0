"""A server whose requests replicas answer, on a local Ray cluster of two workers."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import psutil
import pytest

import foveate
from foveate.integrations.ray.cluster import Model, Replicas
from foveate.integrations.ray.pool import Pool, deployed
from foveate.serving import Limits
from tests.integrations.ray.local_ray import processes, two_workers
from tests.serving.live_server import ANSWER, EXAMPLES, PLAN, TOTAL, Served, answering, asking, data_uri, wait_until

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.xdist_group("ray-server")]

RECEIPT = data_uri((EXAMPLES / "receipt.png").read_bytes())
QUESTION = asking(TOTAL, RECEIPT)
TWO = Replicas(2)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    limits = Limits(batch=4)
    with two_workers(), deployed(Model(), TWO, limits, "test of: a/b") as handle:
        with answering(Pool(handle, "test of: a/b", TWO, limits), plan=PLAN, api_key="key") as server:
            yield server
            left = server.engine
        assert not left.alive and not left._jobs


def said(served: Served, messages: list[dict[str, Any]] = QUESTION, **more: Any) -> Any:
    return served.client("key").chat.completions.create(model="embedded", messages=messages, **more)


def health(served: Served) -> dict[str, Any]:
    return httpx.get(f"{served.address}/health").json()


def test_answers_limits_and_counters_are_those_of_any_server(served: Served) -> None:
    for plan in (PLAN, "fastv:50%@2"):
        answer = said(served, extra_body={"foveate": {"plan": plan}})
        expected = foveate.ask(EXAMPLES / "receipt.png", TOTAL, plan=plan)
        assert answer.choices[0].message.content == expected.text
        assert answer.usage.model_extra["foveate"]["plan"] == plan
    pieces = [piece.choices[0].delta.content or "" for piece in said(served, stream=True)]
    assert "".join(pieces) == said(served).choices[0].message.content and len(pieces) > 2
    with pytest.raises(openai.AuthenticationError):
        served.client("wrong").chat.completions.create(model="embedded", messages=QUESTION)
    with pytest.raises(openai.BadRequestError, match="positions"):  # a replica says so
        said(served, asking("a " * 3_000, RECEIPT))
    clamped = served.client("key").chat.completions.with_raw_response.create(
        model="embedded", messages=QUESTION, max_tokens=513, n=2, logprobs=True
    )
    assert clamped.headers["x-foveate-max-tokens"] == "512"
    first, second = clamped.parse().choices
    assert first.message == second.message and "".join(one.token for one in first.logprobs.content) == ANSWER
    assert health(served)["replicas"] == {"running": 2, "wanted": 2}
    values = httpx.get(f"{served.address}/metrics").text.splitlines()
    assert "foveate_images_total 6.0" in values and 'foveate_requests_total{status="400"} 1.0' in values


def test_clients_that_leave_free_their_work(served: Served) -> None:
    with ThreadPoolExecutor(12) as pool:

        def leave(number: int) -> bool:
            try:
                if number % 2:
                    with said(served, stream=True, timeout=60) as stream:
                        next(stream)
                    return True
                said(served, timeout=0.05)
            except openai.APITimeoutError:
                return True
            return False

        assert any(pool.map(leave, range(12)))
    wait_until(lambda: not served.engine._jobs)
    assert said(served).choices[0].message.content == ANSWER


@pytest.mark.slow
def test_the_server_goes_on_while_a_replica_is_killed(served: Served) -> None:
    expected = said(served).choices[0]
    with ThreadPoolExecutor(16) as pool:
        answers = [pool.submit(said, served) for _ in range(40)]
        wait_until(lambda: sum(one.done() for one in answers) >= 4, 120)
        victim, *others = processes("ServeReplica")
        assert len(others) == 1 and not all(one.done() for one in answers)
        victim.kill()
        assert [one.result().choices[0] for one in answers] == [expected] * 40  # none is lost: another replica answers
    wait_until(lambda: len(processes("ServeReplica")) == 2 and health(served)["replicas"]["running"] == 2, 240)
    assert health(served)["status"] == "ok" and said(served).choices[0] == expected


@pytest.mark.slow
def test_a_stream_whose_replica_dies_ends_with_an_error_and_the_next_waits_for_a_new_one(served: Served) -> None:
    wait_until(lambda: health(served)["replicas"]["running"] == 2, 240)
    streams = [iter(said(served, stream=True)) for _ in range(4)]
    for stream in streams:
        assert next(stream).choices[0].delta.role == "assistant"
    for replica in processes("ServeReplica"):
        replica.kill()
    ends = []
    for stream in streams:
        try:
            ends.append("".join(piece.choices[0].delta.content or "" for piece in stream))
        except openai.APIError as error:
            ends.append(str(error))
    assert set(ends) <= {ANSWER, "the replica that answered this request failed; send the request again."}
    assert said(served).choices[0].message.content == ANSWER


@pytest.mark.slow
def test_the_command_drains_and_leaves_nothing_behind() -> None:
    command = [sys.executable, "-m", "foveate", "serve", "--port", "0", "--ray", "--replica-cpus", "0.5"]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    found = None
    for line in process.stderr:
        if found := re.search(r"1 replicas?, at (http://[\d.:]+)/v1", line):
            break
    assert found is not None
    client = openai.OpenAI(base_url=f"{found[1]}/v1", api_key="none", max_retries=0)
    below = psutil.Process(process.pid).children(recursive=True)
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(client.chat.completions.create, model="embedded", messages=QUESTION) for _ in range(4)]
        wait_until(lambda: httpx.get(f"{found[1]}/metrics").text.count('requests_total{status="200"}') == 1, 120)
        process.send_signal(signal.SIGTERM)
        assert {one.result().choices[0].message.content for one in answers} == {ANSWER}
    assert process.wait(120) == 0
    wait_until(lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in below), 60)
