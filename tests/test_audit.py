"""The audit of `make check`: it fails on what it finds, and does not take silence for safety."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

AUDIT = Path(__file__).parents[1] / ".ci" / "audit.py"


@contextmanager
def advisories(holes: dict[str, list[str]]) -> Iterator[str]:
    """A service that speaks OSV and knows these identifiers of vulnerabilities by package."""

    class Service(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            name = asked["package"]["name"]
            affected = {"package": asked["package"], "ranges": [{"type": "ECOSYSTEM", "events": [{"fixed": "9.9"}]}]}
            vulns = [{"id": one, "summary": "A hole.", "affected": [affected]} for one in holes.get(name, ())]
            body = json.dumps({"vulns": vulns} if vulns else {}).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            pass

    service = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=service.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{service.server_port}/v1/query"
    finally:
        service.shutdown()
        service.server_close()


def audit(folder: Path, url: str) -> subprocess.CompletedProcess[str]:
    (folder / "r.txt").write_text("pillow==11.0.0\nnumpy==2.0.0\n")
    command = [sys.executable, str(AUDIT), str(folder / "r.txt"), "--osv-url", url]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("holes", "code", "says"),
    [
        ({"requests": ["CVE-1"]}, 0, "audited 2 packages, 0 unknown to the service; 0 vulnerable\n"),
        ({"requests": ["CVE-1"], "pillow": ["CVE-2"]}, 1, "pillow 11.0.0: CVE-2, fixed in 9.9"),
        ({"pillow": ["CVE-2"]}, 0, "NOT AUDITED for known vulnerabilities: the service does not know that requests"),
    ],
)
def test_what_a_service_knows(tmp_path: Path, holes: dict[str, list[str]], code: int, says: str) -> None:
    with advisories(holes) as url:
        run = audit(tmp_path, url)
    assert run.returncode == code, run.stderr
    assert says in run.stdout


def test_a_service_that_is_not_there(tmp_path: Path) -> None:
    with advisories({}) as url:
        pass
    run = audit(tmp_path, url)
    assert run.returncode == 0
    assert run.stdout.startswith("NOT AUDITED") and run.stdout.count("\n") == 1 and "Traceback" not in run.stdout
