"""What no honest client sends: each ends in a clear error of the client, soon, and the server goes on."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import foveate
from foveate.core.errors import FoveateError
from foveate.serving import Limits, protocol
from foveate.serving.app import _event
from tests.serving.hostile import bad_addresses, bad_bodies, bad_images, base64_bomb, odd_images
from tests.serving.live_server import EXAMPLES, Served, asking, data_uri, running, wait_until

SECONDS = 20
#: Memory that no hostile request may take, in bytes.
SPARE = 600 * 2**20


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("root")
    (root / "receipt.png").write_bytes((EXAMPLES / "receipt.png").read_bytes())
    outside = tmp_path_factory.mktemp("outside") / "secret.png"
    outside.write_bytes((EXAMPLES / "receipt.png").read_bytes())
    (root / "link.png").symlink_to(outside)
    limits = Limits(body=40 * 2**20, read_seconds=5, tokens=32)
    with running(*foveate.load(plan=None), limits, root=root, hosts=("allowed.example",)) as server:
        yield server
        assert httpx.get(f"{server.address}/health").json()["status"] == "ok"
        answer = server.client().chat.completions.create(model="embedded", messages=asking("?", "file:receipt.png"))
        assert answer.choices[0].message.content


def post(served: Served, body: bytes) -> httpx.Response:
    memory = psutil.Process().memory_info().rss
    response = httpx.post(f"{served.address}/v1/chat/completions", content=body, timeout=SECONDS)
    assert psutil.Process().memory_info().rss - memory < SPARE
    return response


def refused(response: httpx.Response, *, says: str = "") -> None:
    assert response.status_code == 400, response.text
    message = response.json()["error"]["message"]
    assert says in message and len(message) < 1000 and "Traceback" not in message


def ask(served: Served, url: str) -> httpx.Response:
    body = {"model": "embedded", "messages": asking("What is it?", url)}
    return httpx.post(f"{served.address}/v1/chat/completions", json=body, timeout=SECONDS)


@pytest.mark.parametrize("body", [pytest.param(body, id=name) for name, body in bad_bodies()])
def test_bodies(guarded: Served, body: bytes) -> None:
    refused(post(guarded, body))


@pytest.mark.parametrize("content", [pytest.param(content, id=name) for name, content in bad_images()])
def test_images(guarded: Served, content: bytes) -> None:
    refused(ask(guarded, data_uri(content)))


@pytest.mark.parametrize("content", [pytest.param(content, id=name) for name, content in odd_images()])
def test_odd_images_are_answered(guarded: Served, content: bytes) -> None:
    assert ask(guarded, data_uri(content)).status_code == 200


@pytest.mark.parametrize("url", [pytest.param(url, id=name) for name, url in bad_addresses()])
def test_addresses(guarded: Served, url: str) -> None:
    refused(ask(guarded, url), says="messages[0].content[0].image_url.url: ")


def test_nobody_learns_which_files_exist(guarded: Served) -> None:
    there, missing = (
        ask(guarded, f"file://{path}").json()["error"]["message"] for path in ("/etc/passwd", "/etc/nosuch")
    )
    assert there.replace("passwd", "") == missing.replace("nosuch", "")


def test_long_bodies(guarded: Served) -> None:
    response = post(guarded, base64_bomb())
    refused(response, says="at most")
    with httpx.Client(timeout=SECONDS) as client:
        announced = client.build_request("POST", f"{guarded.address}/v1/chat/completions", content=bytes(41 * 2**20))
        refused_before = status_count(guarded, 413)
        assert client.send(announced).status_code == 413
        assert status_count(guarded, 413) == refused_before + 1

        def endless() -> Iterator[bytes]:
            for _ in range(100):
                yield bytes(2**20)

        try:
            status = client.post(f"{guarded.address}/v1/chat/completions", content=endless()).status_code
        except httpx.TransportError:  # the connection was closed while we were still sending
            status = 413
        assert status == 413


def test_slow_clients_are_let_go(guarded: Served) -> None:
    host, port = guarded.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as slow:
        slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        slow.settimeout(SECONDS)
        start = time.monotonic()
        assert b"408" in slow.recv(200)
        assert time.monotonic() - start >= 4
    assert status_count(guarded, 408) == 1


def status_count(server: Served, status: int) -> float:
    lines = httpx.get(f"{server.address}/metrics").text.splitlines()
    names = f'foveate_requests_total{{status="{status}"}} '
    return next((float(line.removeprefix(names)) for line in lines if line.startswith(names)), 0)


def test_clients_that_leave_before_their_request_is_complete_are_counted_as_such(guarded: Served) -> None:
    host, port = guarded.address.removeprefix("http://").split(":")
    before, failed = status_count(guarded, 499), status_count(guarded, 500)
    with socket.create_connection((host, int(port))) as leaving:
        leaving.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        time.sleep(0.2)
    wait_until(lambda: status_count(guarded, 499) > before)
    assert status_count(guarded, 500) == failed


def test_only_named_hosts_and_no_redirects() -> None:
    receipt = (EXAMPLES / "receipt.png").read_bytes()

    class Pictures(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/receipt.png":
                self.send_response(200)
                self.end_headers()
                self.wfile.write(receipt)
            elif self.path == "/endless":
                self.send_response(200)
                self.end_headers()
                try:
                    while True:
                        self.wfile.write(bytes(2**16))
                except OSError:
                    return
            elif self.path == "/slow":
                self.send_response(200)
                self.end_headers()
                time.sleep(4)
            else:
                self.send_response(302)
                self.send_header("location", "/receipt.png")
                self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    pictures = ThreadingHTTPServer(("127.0.0.1", 0), Pictures)
    threading.Thread(target=pictures.serve_forever, daemon=True).start()
    there = f"127.0.0.1:{pictures.server_port}"
    try:
        limits = Limits(image_bytes=2**20, fetch_seconds=1.5)
        with running(*foveate.load(plan=None), limits, hosts=(there,)) as server:
            assert ask(server, f"http://{there}/receipt.png").status_code == 200
            refused(ask(server, f"http://{there}/moved.png"), says="302")
            refused(ask(server, f"http://{there}/endless"), says="at most 1 MiB")
            refused(ask(server, f"http://{there}/slow"), says="longer than 1.5 s")
            refused(ask(server, f"http://localhost:{pictures.server_port}/receipt.png"), says="does not fetch from")
            pictures.shutdown()
            pictures.server_close()
            refused(ask(server, f"http://{there}/receipt.png"), says="could not be read")
    finally:
        pictures.shutdown()
        pictures.server_close()


@pytest.mark.slow
def test_memory_is_given_back(guarded: Served) -> None:
    with running(*foveate.load(plan=None), Limits(memory=6 * 2**20)) as server:
        large = "data:image/png;base64," + data_uri((EXAMPLES / "receipt.png").read_bytes()).partition(",")[2]
        for _ in range(12):
            assert ask(server, large).status_code == 200
            refused(ask(server, "data:image/png;base64,@@@@"))
        crowd = [data_uri((EXAMPLES / "chart.png").read_bytes())] * 14
        body = {"model": "embedded", "messages": asking("?", *crowd)}
        assert httpx.post(f"{server.address}/v1/chat/completions", json=body).status_code == 429
        assert ask(server, large).status_code == 200
        wait_until(lambda: server.engine.state["waiting"] == 0)


def test_events_are_two_lines_whatever_the_text() -> None:
    """Also for clients that take every separator of Unicode for the end of a line, as `httpx.Response.iter_lines`."""
    text = "one\u2028two\x85three\x0bfour\r\nfive \u65e5\U0001f600"
    event = _event({"content": text})
    assert len(event.splitlines()) == 2 and event.endswith("\n\n")
    assert json.loads(event.removeprefix("data: ")) == {"content": text}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=20,
)
fields = st.sampled_from(sorted(protocol.ChatRequest.model_fields))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(fields, json_values, max_size=6))
def test_any_json_is_a_request_or_one_sentence(document: dict[str, Any]) -> None:
    base = {"model": "embedded", "messages": [{"role": "user", "content": "Hi"}]}
    for asked in (document, base | document):
        text = json.dumps(asked).encode()
        try:
            request = protocol.parse(text)
        except FoveateError:
            continue
        assert len(request.conversation([None] * len(request.visuals))) == len(asked["messages"])


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_one_sentence(body: bytes) -> None:
    with pytest.raises(FoveateError):
        protocol.parse(body)
