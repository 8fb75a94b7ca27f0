"""Serving benchmark: requests per second, time to first token and between tokens, by number of clients.

Any server that speaks OpenAI's API is asked over HTTP, with the official client. For every number of clients the
full model and every plan are measured one right after the other, in several turns, each in another
order; ratios are those of a turn, so that what else a machine does at the time weighs on both sides alike.
"""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from foveate.benchmark import profiling
from foveate.benchmark.results import write_json
from foveate.clips import FRAMES_PER_SECOND
from foveate.clips.writing import write_clip
from foveate.core.errors import FoveateError
from foveate.core.full_model import FULL_MODEL

KIND = "serving"
#: Where a request names its plan, by kind of server.
DIALECTS: dict[str, Callable[[str], dict[str, Any]]] = {
    "foveate": lambda plan: {"foveate": {"plan": plan}},
    "vllm": lambda plan: {"mm_processor_kwargs": {"foveate_plan": plan}},
}
#: Fields of every request, by kind of server.
FIELDS: dict[str, dict[str, Any]] = {"foveate": {}, "vllm": {"ignore_eos": True}}


@dataclass(frozen=True)
class ServingSettings:
    """Settings of the serving benchmark.

    Args:
        url: The server's, up to and including /v1.
        plans: Next to the full model.
        dialect: How a request names a plan: a name of `DIALECTS`.
        against: Names and URLs of other servers of the same kind, asked in the same turns without naming a plan: one
            that compresses by itself, say.
        clients: Numbers of clients that ask at the same time, each one question after the other.
        requests: Of one turn; at least one a client.
        turns: Times that everything is measured.
        side: Of the square images, in pixels; no two requests show the same one.
        frames: Of the clip that a request shows in place of an image, two a second; 0: an image. Needs PyAV.
        new_tokens: Most tokens of an answer.
        question: What is asked.
        model: Its name at the server; empty: the first one that the server lists.
        api_key: What the server wants.
        timeout: Seconds until a request has failed.
    """

    url: str
    plans: tuple[str, ...]
    dialect: str = "foveate"
    against: tuple[tuple[str, str], ...] = ()
    clients: tuple[int, ...] = (1, 8, 32)
    requests: int = 32
    turns: int = 3
    side: int = 336
    frames: int = 0
    new_tokens: int = 16
    question: str = "What is shown here? Answer at length."
    model: str = ""
    api_key: str = field(default="none", repr=False)
    timeout: float = 600.0

    def __post_init__(self) -> None:
        if not self.plans and not self.against:
            raise FoveateError("name at least one plan, such as divprune:64, to compare with the full model.")
        names = (FULL_MODEL, *self.plans, *(name for name, _ in self.against))
        if len(set(names)) < len(names):
            raise FoveateError("each plan and server is measured once, and the full model always; use other names.")
        if self.dialect not in DIALECTS:
            raise FoveateError(f"{self.dialect!r} is not a kind of server; possible are {', '.join(DIALECTS)}.")
        for name, value in (("turns", self.turns), ("side", self.side), ("requests", self.requests)):
            if value < 1:
                raise FoveateError(f"{name} must be a positive integer, not {value}.")
        if self.frames < 0 or self.frames == 1:
            raise FoveateError(f"frames must be at least 2, or 0 for an image, not {self.frames}.")
        if self.frames and self.side % 2:
            raise FoveateError(f"frames of a clip have an even number of pixels a side, not {self.side}.")
        if not self.clients or min(self.clients) < 1:
            raise FoveateError("numbers of clients must be positive integers.")
        if self.new_tokens < 2:
            raise FoveateError("answers need at least two tokens for the time between tokens.")


@dataclass(frozen=True)
class RequestTiming:
    """Timings and token counts of one request.

    Args:
        first: Seconds from the request to the first text.
        gap: Seconds from one token to the next, on average; None where there was one piece of text only.
        read: Tokens of the prompt, as the server counts them.
        written: Tokens of the answer.
    """

    first: float
    gap: float | None
    read: int
    written: int


def run(
    settings: ServingSettings, path: Path, *, command: str = "", note: str = "", report: Callable[[str], object] = print
) -> dict[str, Any]:
    """Run the benchmark and write the result.

    Args:
        settings: What.
        path: The JSON file.
        command: Is noted in it.
        note: What a reader must know of the machine, likewise.
        report: Called with progress messages.

    Raises:
        FoveateError: there is no such server, or it refuses or fails to answer a request.
    """
    return asyncio.run(_run(settings, path, command, note, report))


async def _run(
    settings: ServingSettings, path: Path, command: str, note: str, report: Callable[[str], object]
) -> dict[str, Any]:
    openai = _openai()
    shared = {"api_key": settings.api_key, "max_retries": 0, "timeout": settings.timeout}
    opened = {
        url: openai.AsyncOpenAI(base_url=url, **shared) for url in (settings.url, *dict(settings.against).values())
    }
    measured: dict[tuple[int, str], list[dict[str, Any]]] = {}
    url = settings.url
    try:
        model = settings.model or (await opened[url].models.list()).data[0].id
        asked = [_Asked(plan, url, opened[url], model, plan) for plan in (FULL_MODEL, *settings.plans)]
        for name, url in settings.against:
            other = (await opened[url].models.list()).data[0].id
            asked.append(_Asked(name, url, opened[url], other, None))
        for one in asked:  # a first question to each, whose time does not count
            url = one.url
            await _ask(one, settings, _shown(settings, 0))
        seeds = itertools.count(1)  # no image is asked about twice: a server may keep what it made of one
        for clients in settings.clients:
            measured |= {(clients, one.name): [] for one in asked}
            for turn in range(settings.turns):
                for one in profiling.in_turn(asked, turn):
                    url = one.url
                    result = await _turn(one, settings, clients, next(seeds))
                    measured[clients, one.name].append(result)
                    report(
                        f"{clients} clients, turn {turn + 1}, {one.name}: "
                        f"{result['requests_per_second']:.3f} requests/s"
                    )
    except openai.OpenAIError as error:
        reason = getattr(error, "message", None) or str(error)
        raise FoveateError(f"the server at {url} did not answer correctly: {reason}") from error
    finally:
        for client in opened.values():
            await client.close()
    described = {name: value for name, value in asdict(settings).items() if name != "api_key"}
    document = {
        "kind": KIND,
        "command": command,
        "note": note,
        "hardware": profiling.hardware(torch.device("cpu")),  # of the machine that asks
        "settings": {**described, "model": model},
        "rows": rows(measured, settings),
    }
    write_json(path, document)
    return document


@dataclass(frozen=True)
class _Asked:
    """What is measured: a plan of the server, or another server.

    Args:
        name: In the table.
        url: Of the server.
        client: The connection to it.
        model: Its name there.
        plan: That requests name; None: none.
    """

    name: str
    url: str
    client: Any
    model: str
    plan: str | None


async def _turn(asked: _Asked, settings: ServingSettings, clients: int, seed: int) -> dict[str, Any]:
    """Run one turn under one plan: each client sends its next question once it has the answer."""
    count = max(settings.requests, clients)
    parts = iter([_shown(settings, seed * 10_000 + number) for number in range(count)])
    answers: list[RequestTiming] = []

    async def ask() -> None:
        for part in parts:
            answers.append(await _ask(asked, settings, part))

    start = time.perf_counter()
    tasks = [asyncio.create_task(ask()) for _ in range(clients)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:  # one has failed, so the others can stop
            task.cancel()
    spent = time.perf_counter() - start
    gaps = [answer.gap for answer in answers if answer.gap is not None]
    return {
        "requests_per_second": count / spent,
        "first_token": statistics.median(answer.first for answer in answers),
        "between_tokens": statistics.median(gaps) if gaps else None,
        "prompt_tokens": statistics.mean(answer.read for answer in answers),
        "completion_tokens": statistics.mean(answer.written for answer in answers),
    }


async def _ask(asked: _Asked, settings: ServingSettings, shown: dict[str, Any]) -> RequestTiming:
    named = {} if asked.plan is None else DIALECTS[settings.dialect](asked.plan)
    start = time.perf_counter()
    stream = await asked.client.chat.completions.create(
        model=asked.model,
        messages=[{"role": "user", "content": [shown, {"type": "text", "text": settings.question}]}],
        max_tokens=settings.new_tokens,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body=FIELDS[settings.dialect] | named,
    )
    times: list[float] = []
    usage = None
    async for piece in stream:
        if piece.choices and piece.choices[0].delta.content:
            times.append(time.perf_counter())
        usage = piece.usage or usage
    if usage is None or not times:
        raise FoveateError(f"the server at {asked.url} answered without text or without usage.")
    written = usage.completion_tokens
    gap = (times[-1] - times[0]) / (written - 1) if len(times) > 1 and written > 1 else None
    return RequestTiming(times[0] - start, gap, usage.prompt_tokens, written)


def _shown(settings: ServingSettings, seed: int) -> dict[str, Any]:
    """The image or clip of a request, as a data URI: small to send, and unique to the request."""
    if settings.frames:
        data = _clip(settings.side, settings.frames, seed)
        return {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{base64.b64encode(data).decode()}"}}
    file = io.BytesIO()
    _picture(settings.side, seed).save(file, "JPEG", quality=90)
    data = base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}}


def _picture(side: int, seed: int) -> Image.Image:
    """Smooth random colours."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)


def _clip(side: int, frames: int, seed: int) -> bytes:
    """A file of frames, one fading into another: most of a frame is as in the one before, as in real clips."""
    first, last = _picture(side, 2 * seed), _picture(side, 2 * seed + 1)
    file = io.BytesIO()
    faded = (np.asarray(Image.blend(first, last, number / (frames - 1))) for number in range(frames))
    write_clip(file, faded, round(FRAMES_PER_SECOND))
    return file.getvalue()


def rows(measured: dict[tuple[int, str], list[dict[str, Any]]], settings: ServingSettings) -> list[dict[str, Any]]:
    """Summarise every number of clients and plan: medians over turns, and ratios to the full model.

    A ratio is above 1 where the plan is better: more requests a second, less time. It is the median of those of every
    turn, which has both sides.
    """
    result = []
    for (clients, plan), turns in measured.items():
        full_model = measured[clients, FULL_MODEL]
        row: dict[str, Any] = {"clients": clients, "plan": plan, "requests": max(settings.requests, clients)}
        for name in turns[0]:
            values = [turn[name] for turn in turns]
            known = [value for value in values if value is not None]
            row[name] = {"median": statistics.median(known) if known else None, "all": values}
        row["times_full_model"] = {
            name: _ratio(turns, full_model, name, more)
            for name, more in (("requests_per_second", True), ("first_token", False), ("between_tokens", False))
        }
        result.append(row)
    return result


def _ratio(turns: Sequence[Any], other: Sequence[Any], name: str, more: bool) -> dict[str, Any] | None:
    pairs = [(a[name], b[name]) for a, b in zip(turns, other, strict=True)]
    if any(a is None or b is None for a, b in pairs):
        return None
    values = [a / b if more else b / a for a, b in pairs]
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def table(document: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of a result as text."""
    header = ["clients", "plan", "prompt", "requests/s", "times", "first token", "times", "between tokens", "times"]
    lines = []
    for row in document["rows"]:
        line = [str(row["clients"]), row["plan"], f"{row['prompt_tokens']['median']:.0f}"]
        for name, unit in (("requests_per_second", ""), ("first_token", " s"), ("between_tokens", " s")):
            value, ratio = row[name]["median"], row["times_full_model"][name]
            line.append("-" if value is None else f"{value:.3f}{unit}")
            line.append("-" if ratio is None else f"{ratio['median']:.2f}")
        lines.append(line)
    return header, lines


def _openai() -> Any:
    try:
        import openai
    except ImportError as error:
        raise FoveateError("this needs the openai package: pip install 'foveate[bench]'.") from error
    return openai
