"""The HTTP side of a server: routes in the words of OpenAI's API, and what guards them."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from foveate.errors import FoveateError
from foveate.plan import Plan
from foveate.serving import protocol
from foveate.serving.engine import Answers, Job, Result
from foveate.serving.guard import Guard
from foveate.serving.limits import BusyError, Held, LostError, Share
from foveate.serving.protocol import ChatRequest, error_body
from foveate.serving.rows import Sampling
from foveate.serving.sources import Sources

log = logging.getLogger("foveate.serving")
#: Seconds between two looks whether a client that waits for a whole answer is still there.
_LOOK = 0.2


class RefusedError(Exception):
    """A request that is answered with an error.

    Args:
        status: Of HTTP.
        message: One sentence.
        kind: As OpenAI names it.
        code: As OpenAI names it.
    """

    def __init__(self, status: int, message: str, kind: str = "invalid_request_error", code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.body = status, error_body(message, kind, code)


class GoneError(Exception):
    """The client left."""


def build(
    engine: Answers, sources: Sources, *, name: str, plan: Plan | None = None, api_key: str | None = None
) -> FastAPI:
    """The application.

    Args:
        engine: Answers requests; started and stopped with the application.
        sources: Open images.
        name: What clients call the model.
        plan: Of requests that name none.
        api_key: What clients must send as bearer token; None: nothing.

    Returns:
        An ASGI application with /v1/chat/completions, /v1/models, /health and /metrics.
    """
    held = Held(engine.limits.memory)

    @asynccontextmanager
    async def living(app: FastAPI) -> AsyncGenerator[None]:
        engine.start()
        try:
            yield
        finally:
            await asyncio.to_thread(engine.stop)

    app = FastAPI(title="foveate", lifespan=living, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, limits=engine.limits, held=held)
    metrics = engine.metrics

    def answer_with(status: int, body: Any, headers: dict[str, str] | None = None) -> JSONResponse:
        metrics.requests.labels(status).inc()
        return JSONResponse(body, status, headers)

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> Response:
        headers = {"www-authenticate": "Bearer"} if error.status == 401 else None
        return answer_with(error.status, error.body, headers)

    @app.exception_handler(FoveateError)
    async def invalid(request: Request, error: FoveateError) -> Response:
        return answer_with(400, error_body(str(error)))

    @app.exception_handler(BusyError)
    async def busy(request: Request, error: BusyError) -> Response:
        status = 429 if engine.alive else 503
        return answer_with(status, error_body(str(error), "overloaded_error"), {"retry-after": "1"})

    @app.exception_handler(LostError)
    async def lost(request: Request, error: LostError) -> Response:
        return answer_with(503, error_body(str(error), "server_error"))

    @app.exception_handler(GoneError)
    async def gone(request: Request, error: GoneError) -> Response:
        metrics.requests.labels(499).inc()
        return Response(status_code=499)

    @app.exception_handler(404)
    async def unknown(request: Request, error: Exception) -> Response:
        return answer_with(404, error_body(f"there is nothing at {request.url.path[:200]}.", code="not_found"))

    @app.exception_handler(405)
    async def wrong_method(request: Request, error: Exception) -> Response:
        return answer_with(405, error_body(f"{request.url.path[:200]} takes no {request.method[:20]}."))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return answer_with(500, error_body("the server failed on this request; its log says why.", "server_error"))

    def authorise(request: Request) -> None:
        if api_key is not None:
            kind, _, token = request.headers.get("authorization", "").partition(" ")
            if kind.lower() != "bearer" or not hmac.compare_digest(token.strip().encode(), api_key.encode()):
                raise RefusedError(401, "a valid API key is needed, as a bearer token.", code="invalid_api_key")

    @app.get("/health")
    async def health() -> Response:
        state = engine.state
        body = {**state, "model": name, "plan": None if plan is None else str(plan)}
        return JSONResponse(body, 200 if state["status"] == "ok" else 503)

    @app.get("/metrics")
    async def counters() -> Response:
        return Response(metrics.text(), media_type=metrics.content_type)

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        authorise(request)
        return answer_with(200, {"object": "list", "data": [_model(name)]})

    @app.get("/v1/models/{asked:path}")
    async def model(request: Request, asked: str) -> Response:
        authorise(request)
        _check_name(asked, name)
        return answer_with(200, _model(name))

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        authorise(request)
        asked = await asyncio.to_thread(protocol.parse, await request.body())
        _check_name(asked.model, name)
        share = Share(held)
        job: Job | None = None

        def done() -> None:
            held.give(share.bytes)
            if job is not None:
                engine.cancel(job)

        with contextlib.ExitStack() as ending:
            ending.callback(done)
            job, inbox = await _job(asked, engine, sources, plan, share)
            identity = protocol.new_id()
            # What fails before the first piece of a stream is still an error with a status of its own.
            piece = await _take(request, inbox)
            if asked.stream:
                metrics.requests.labels(200).inc()
                return _Events(_stream(asked, inbox, piece, identity, name), ending.pop_all().close)
            while not isinstance(piece, Result):
                piece = await _take(request, inbox)
            return answer_with(200, protocol.completion(identity, name, piece.text, piece.reason, piece.usage))

    return app


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "foveate"}


def _check_name(asked: str, name: str) -> None:
    if asked != name:
        raise RefusedError(
            404, f"there is no model {asked[:100]!r} here; this server has {name!r}.", code="model_not_found"
        )


Inbox = asyncio.Queue[str | Result | BaseException]


async def _job(
    asked: ChatRequest, engine: Answers, sources: Sources, own: Plan | None, share: Share
) -> tuple[Job, Inbox]:
    """A request in the engine's queue, and where its answer arrives."""
    limits = engine.limits
    wanted = asked.max_completion_tokens or asked.max_tokens
    if wanted is not None and wanted > limits.tokens:
        raise FoveateError(f"max_tokens: an answer may have at most {limits.tokens} tokens here, not {wanted}.")
    if asked.characters > limits.characters:
        raise FoveateError(
            f"messages: at most {limits.characters} characters of text are read, not {asked.characters}."
        )
    if len(asked.urls) > limits.images:
        raise FoveateError(f"messages: at most {limits.images} images are read, not {len(asked.urls)}.")
    chosen = protocol.plan_of(asked.foveate, own)
    images = [await sources.open(url, share) for url in asked.urls]
    inbox: Inbox = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def deliver(piece: str | Result | BaseException) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it everyone who waited
            loop.call_soon_threadsafe(inbox.put_nowait, piece)

    sampling = Sampling(asked.temperature or 0.0, asked.top_p or 1.0, asked.seed)
    job = Job(asked.conversation(images), chosen, wanted, sampling, asked.stops, deliver, asked.stream)
    engine.submit(job)
    return job, inbox


async def _take(request: Request, inbox: Inbox) -> str | Result:
    while True:
        try:
            piece = await asyncio.wait_for(inbox.get(), _LOOK)
        except TimeoutError:
            if await request.is_disconnected():
                raise GoneError from None
            continue
        if isinstance(piece, BaseException):
            raise piece
        return piece


async def _stream(
    asked: ChatRequest, inbox: Inbox, piece: str | Result, identity: str, name: str
) -> AsyncGenerator[str]:
    """An answer as server-sent events."""
    yield _event(protocol.chunk(identity, name, {"role": "assistant", "content": ""}))
    while isinstance(piece, str):
        yield _event(protocol.chunk(identity, name, {"content": piece}))
        arrived = await inbox.get()
        if isinstance(arrived, BaseException):  # the status is sent already
            known = isinstance(arrived, (FoveateError, BusyError, LostError))
            said = str(arrived) if known else "the server failed on this request."
            yield _event(error_body(said, "server_error"))
            return
        piece = arrived
    yield _event(protocol.chunk(identity, name, {}, piece.reason))
    if asked.stream_options is not None and asked.stream_options.include_usage:
        yield _event(protocol.usage_chunk(identity, name, piece.usage))
    yield "data: [DONE]\n\n"


class _Events(StreamingResponse):
    """A stream that says when it has ended, however it ended: a client may leave before the first piece.

    Args:
        pieces: Of the stream.
        done: Called at its end.
    """

    def __init__(self, pieces: AsyncGenerator[str], done: Callable[[], object]) -> None:
        super().__init__(pieces, media_type="text/event-stream", headers={"cache-control": "no-cache"})
        self._done = done

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send the stream."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._done()


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"
