"""HTTP application of the server: routes of OpenAI's API and their guards."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import re
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from foveate.core.acquisition import split_acquisition
from foveate.core.errors import FoveateError
from foveate.core.plan import Plan
from foveate.serving import openapi, protocol
from foveate.serving.engine import AnswerBackend, Job
from foveate.serving.fields import FieldError
from foveate.serving.generation import FirstToken, Piece, Sampling
from foveate.serving.limits import BusyError, ByteCounter, EngineDeadError, Share
from foveate.serving.middleware import Guard
from foveate.serving.protocol import ChatRequest
from foveate.serving.responses import Writer, called, error_body
from foveate.serving.result import Result, usage_of
from foveate.serving.sources import Sources

log = logging.getLogger("foveate.serving")
#: Seconds between two checks whether a client that waits for a complete answer is still connected.
_LOOK = 0.2
#: Headers of an answer: that fewer tokens were possible than were asked for, and which fields changed nothing.
CLAMPED, IGNORED = "x-foveate-max-tokens", "x-foveate-ignored"
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-fA-F:.]+\]|[\w.-]+)(:\d{1,5})?")


class RefusedError(Exception):
    """Error response to a request.

    Args:
        status: Of HTTP.
        message: One sentence.
        kind: As OpenAI names it.
        code: As OpenAI names it.
    """

    def __init__(self, status: int, message: str, kind: str = "invalid_request_error", code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.body = status, error_body(message, kind, code)


class ClientDisconnectedError(Exception):
    """The client has disconnected."""


def build(
    engine: AnswerBackend,
    sources: Sources,
    *,
    name: str,
    plan: Plan | None = None,
    api_key: str | None = None,
    origins: Sequence[str] = (),
) -> ASGIApp:
    """Build the application.

    Args:
        engine: Answers requests; started and stopped with the application.
        sources: Open images.
        name: What clients call the model.
        plan: Of requests that name none.
        api_key: What clients must send as bearer token; None: nothing.
        origins: Of web pages that browsers let ask this server, such as "https://example.org"; "*": of all.

    Returns:
        An ASGI application with /v1/chat/completions, /v1/models, /health, /metrics, /docs and /openapi.json.

    Raises:
        FoveateError: an origin or the key cannot be one.
    """
    check_origins(origins)
    check_key(api_key)
    held = ByteCounter(engine.limits.memory)

    @asynccontextmanager
    async def living(app: FastAPI) -> AsyncGenerator[None]:
        engine.start()
        try:
            yield
        finally:
            await asyncio.to_thread(engine.stop)

    app = FastAPI(title="foveate", lifespan=living, docs_url=None, redoc_url=None, openapi_url=None)
    metrics = engine.metrics
    app.add_middleware(
        Guard, limits=engine.limits, held=held, refused=lambda status: metrics.requests.labels(status).inc()
    )

    def answer_with(status: int, body: Any, headers: dict[str, str] | None = None) -> JSONResponse:
        metrics.requests.labels(status).inc()
        return JSONResponse(body, status, headers)

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> Response:
        headers = {"www-authenticate": "Bearer"} if error.status == 401 else None
        return answer_with(error.status, error.body, headers)

    @app.exception_handler(FoveateError)
    async def invalid(request: Request, error: FoveateError) -> Response:
        field = error.field if isinstance(error, FieldError) else None
        return answer_with(400, error_body(str(error), code=error.code or None, param=field))

    @app.exception_handler(BusyError)
    async def busy(request: Request, error: BusyError) -> Response:
        status = 429 if engine.alive else 503
        return answer_with(status, error_body(str(error), "overloaded_error"), {"retry-after": "1"})

    @app.exception_handler(EngineDeadError)
    async def lost(request: Request, error: EngineDeadError) -> Response:
        return answer_with(503, error_body(str(error), "server_error"))

    @app.exception_handler(ClientDisconnect)  # before its request was complete
    @app.exception_handler(ClientDisconnectedError)
    async def gone(request: Request, error: Exception) -> Response:
        metrics.requests.labels(499).inc()
        return Response(status_code=499)

    @app.exception_handler(404)
    async def unknown(request: Request, error: Exception) -> Response:
        return answer_with(404, error_body(f"there is nothing at {request.url.path[:200]}.", code="not_found"))

    @app.exception_handler(405)
    async def wrong_method(request: Request, error: Exception) -> Response:
        return answer_with(405, error_body(f"{request.url.path[:200]} does not support {request.method[:20]}."))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return answer_with(500, error_body("the server failed on this request; see its log.", "server_error"))

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

    described = openapi.document(name, engine.limits)
    page = openapi.page(described)

    @app.get("/openapi.json")
    async def schema() -> Response:
        return JSONResponse(described)

    @app.get("/docs")
    async def docs() -> Response:
        return HTMLResponse(page, headers={"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"})

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
        body = await asyncio.to_thread(protocol.parse, await request.body())
        _check_name(body.model, name)
        share = Share(held)
        jobs: list[Job] = []

        def done() -> None:
            held.give(share.bytes)
            for job in jobs:
                engine.cancel(job)

        with contextlib.ExitStack() as ending:
            ending.callback(done)
            inbox = await _begin(body, engine, sources, plan, share, jobs)
            # A failure before the first token is still reported by an error status, streamed or not.
            _, begun = await _take(request, inbox)
            headers = _report_headers(body, begun)
            if body.stream:
                metrics.requests.labels(200).inc()
                return _Events(_stream(body, inbox, Writer(name)), headers, ending.pop_all().close)
            results: dict[int, Result] = {}
            while len(results) < body.choices:
                number, piece = await _take(request, inbox)
                if isinstance(piece, Result):
                    results[number] = piece
            ordered = [results[number] for number in range(body.choices)]
            return answer_with(200, Writer(name).completion(ordered, usage_of(ordered)), headers)

    if not origins:
        return app
    # Outside of everything, so that pages can read errors too.
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=[CLAMPED, IGNORED, "retry-after"],
    )


def check_origins(origins: Sequence[str]) -> None:
    """Raise FoveateError for a text that no browser sends as an origin.

    Raises:
        FoveateError: an origin is neither scheme://host[:port] nor "*".
    """
    for origin in origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise FoveateError(
                f"{origin!r} is not an origin of web pages; write scheme and host without a path, such as "
                "https://example.org or http://localhost:3000, or * for all."
            )


def check_key(api_key: str | None) -> None:
    """Raise FoveateError for a key that is empty, with which the server would be open, or that no header can hold.

    Raises:
        FoveateError: the key is not of visible ASCII characters alone.
    """
    if api_key is not None and not re.fullmatch("[!-~]+", api_key):
        raise FoveateError("an API key has one or more visible ASCII characters and no spaces; leave it out for none.")


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "foveate"}


def _check_name(requested: str, name: str) -> None:
    if requested != name:
        raise RefusedError(
            404, f"there is no model {requested[:100]!r} here; this server has {name!r}.", code="model_not_found"
        )


Delivered = FirstToken | Piece | Result | BaseException
#: Pieces of answers with the numbers of their choices.
Inbox = asyncio.Queue[tuple[int, Delivered]]


async def _begin(
    body: ChatRequest, engine: AnswerBackend, sources: Sources, default_plan: Plan | None, share: Share, jobs: list[Job]
) -> Inbox:
    """Queue a request, with one job per choice, and return the queue of its answers."""
    limits = engine.limits
    if body.characters > limits.characters:
        raise FieldError(
            "messages", f"at most {limits.characters} characters of text are possible, not {body.characters}."
        )
    for count, most, kind in ((body.images, limits.images, "images"), (body.clips, limits.clips, "clips")):
        if count > most:
            raise FieldError("messages", f"at most {most} {kind} are possible, not {count}.")
    if body.choices > limits.batch:
        raise FieldError("n", f"at most {limits.batch} answers per request are possible, not {body.choices}.")
    chosen = protocol.plan_of(body.foveate, default_plan)
    hands_over = body.foveate is not None and body.foveate.second_turn == "client"
    try:
        acquisition, _ = split_acquisition(chosen)
    except FoveateError as error:
        raise FieldError("foveate.plan", error) from None
    if hands_over and acquisition is None:
        raise FieldError(
            "foveate.second_turn",
            "no second turn is possible without a plan that begins with one, such as visionthink.",
        )
    sampler = None if chosen is None else chosen.frame_step
    visuals = []
    for place, kind, url in body.visuals:
        try:
            if kind == "image":
                visuals.append(await sources.open(url, share))
            else:
                visuals.append(await sources.open_clip(url, share, sampler, body.question))
        except FoveateError as error:
            raise FieldError(place, error) from None
    inbox: Inbox = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def deliver(number: int, piece: Delivered) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it everyone who waited
            loop.call_soon_threadsafe(inbox.put_nowait, (number, piece))

    messages = body.conversation(visuals)
    for number in range(body.choices):
        seed = None if body.seed is None else body.seed + number
        sampling = Sampling(
            temperature=body.temperature or 0.0,
            top_p=1.0 if body.top_p is None else body.top_p,
            top_k=max(body.top_k or 0, 0),
            min_p=body.min_p or 0.0,
            repetition_penalty=body.repetition_penalty,
            frequency_penalty=body.frequency_penalty or 0.0,
            presence_penalty=body.presence_penalty or 0.0,
            seed=seed,
            top_logprobs=body.top,
        )
        job = Job(messages, chosen, body.limit, sampling, body.stops, partial(deliver, number), body.stream, hands_over)
        engine.submit(job)
        jobs.append(job)
    return inbox


def _report_headers(body: ChatRequest, begun: Delivered) -> dict[str, str]:
    """Headers that report ignored and changed fields."""
    headers = {}
    if isinstance(begun, FirstToken) and body.limit is not None and begun.limit < body.limit:
        headers[CLAMPED] = str(begun.limit)
    if body.without_effect:
        headers[IGNORED] = ", ".join(body.without_effect)
    return headers


async def _take(request: Request, inbox: Inbox) -> tuple[int, FirstToken | Piece | Result]:
    while True:
        try:
            number, piece = await asyncio.wait_for(inbox.get(), _LOOK)
        except TimeoutError:
            number, piece = 0, None
        if isinstance(piece, BaseException):
            raise piece
        # Also between pieces: a fast model leaves no pause to look in.
        if not isinstance(piece, Result) and await request.is_disconnected():
            raise ClientDisconnectedError
        if piece is not None:
            return number, piece


async def _stream(body: ChatRequest, inbox: Inbox, writer: Writer) -> AsyncGenerator[str]:
    """Yield answers as server-sent events."""
    wants_logprobs = body.top is not None
    for number in range(body.choices):
        yield _event(writer.chunk(number, {"role": "assistant", "content": ""}))
    results: dict[int, Result] = {}
    while len(results) < body.choices:
        number, piece = await inbox.get()
        if isinstance(piece, Piece):
            yield _event(
                writer.chunk(number, {"content": piece.text}, logprobs=piece.logprobs if wants_logprobs else None)
            )
        elif isinstance(piece, Result):
            results[number] = piece
            yield _event(writer.chunk(number, called(piece), piece.reason))
        elif isinstance(piece, BaseException):  # the status is sent already
            known = isinstance(piece, (FoveateError, BusyError, EngineDeadError))
            yield _event(error_body(str(piece) if known else "the server failed on this request.", "server_error"))
            return
    if body.stream_options is not None and body.stream_options.include_usage:
        yield _event(writer.usage(usage_of([results[number] for number in sorted(results)])))
    yield "data: [DONE]\n\n"


class _Events(StreamingResponse):
    """Streaming response that reports its end, also if the client disconnects before the first event.

    Args:
        pieces: Of the stream.
        headers: Next to those of every stream.
        done: Called at its end.
    """

    def __init__(self, pieces: AsyncGenerator[str], headers: dict[str, str], done: Callable[[], object]) -> None:
        super().__init__(pieces, media_type="text/event-stream", headers={"cache-control": "no-cache", **headers})
        self._done = done

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send the stream."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._done()


def _event(body: dict[str, Any]) -> str:
    # In ASCII: some clients end lines where `str.splitlines` does, at characters that JSON does not escape.
    return f"data: {json.dumps(body, separators=(',', ':'))}\n\n"
