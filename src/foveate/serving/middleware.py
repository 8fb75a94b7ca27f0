"""Middleware that limits the size of request bodies and the time that clients may take."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from foveate.serving.limits import BusyError, ByteCounter, Limits
from foveate.serving.responses import error_body


class _StopError(Exception):
    def __init__(self, status: int, message: str, kind: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.response = JSONResponse(error_body(message, kind), status, {"connection": "close"})


class Guard:
    """Middleware that aborts requests with oversized or slow bodies, and responses that nobody reads.

    Args:
        app: The wrapped application.
        limits: Of the server.
        held: Counts the bytes of bodies while they are in memory.
        refused: Called with the status of every answer that is given here.
    """

    def __init__(
        self, app: ASGIApp, limits: Limits, held: ByteCounter, refused: Callable[[int], object] = lambda status: None
    ) -> None:
        self.app, self.limits, self.held, self.refused = app, limits, held, refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limits = self.limits
        begun = complete = False
        with self.held.share() as share:
            late = asyncio.get_running_loop().time() + limits.read_seconds

            async def read() -> Message:
                nonlocal complete
                if complete:  # what follows is only the news that the client left
                    return await receive()
                try:
                    async with asyncio.timeout_at(late):
                        message = await receive()
                except TimeoutError:
                    raise _StopError(408, f"the request was not complete after {limits.read_seconds:g} s.") from None
                if message["type"] == "http.request":
                    size = len(message.get("body", b""))
                    if share.bytes + size > limits.body:
                        raise self._too_long()
                    share.take(size)
                    complete = not message.get("more_body", False)
                return message

            async def write(message: Message) -> None:
                nonlocal begun
                begun = True
                # Raises TimeoutError where a client takes nothing of its answer; the connection is then closed.
                async with asyncio.timeout(limits.read_seconds):
                    await send(message)

            try:
                if _announced(scope) > limits.body:
                    raise self._too_long()
                await self.app(scope, read, write)
            except (_StopError, BusyError) as stop:
                if begun:
                    raise
                response: Any = stop.response if isinstance(stop, _StopError) else None
                if response is None:
                    response = JSONResponse(error_body(str(stop), "overloaded_error"), 429, {"retry-after": "1"})
                self.refused(response.status_code)
                await response(scope, receive, send)

    def _too_long(self) -> _StopError:
        return _StopError(413, f"a request may have at most {self.limits.body / 2**20:g} MiB.")


def _announced(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0
