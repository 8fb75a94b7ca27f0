"""A server of pictures on this machine, for tests of what is fetched."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@contextmanager
def serving(picture: bytes) -> Generator[str]:
    """Serve a picture at /a.png, redirects at /moved.png and /round, and what never ends at /endless and /slow."""

    class Pictures(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            moved = {"/moved.png": "/a.png", "/round": "/round"}.get(self.path)
            if moved is not None:
                self.send_response(302)
                self.send_header("location", moved)
                self.end_headers()
                return
            self.send_response(200 if self.path in ("/a.png", "/endless", "/slow") else 404)
            self.end_headers()
            try:
                if self.path == "/a.png":
                    self.wfile.write(picture)
                while self.path == "/endless":
                    self.wfile.write(bytes(2**16))
            except OSError:
                return
            if self.path == "/slow":
                time.sleep(2)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Pictures)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
