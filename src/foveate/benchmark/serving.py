"""Serving benchmark: requests per second, time to first token and between tokens, by number of clients.

Any server that speaks OpenAI's API is asked over HTTP, with the official client. For every number of clients the
full model and every plan are measured one right after the other, in several turns, each turn beginning with
another one; ratios are those of a turn, so that what else a machine does at the time weighs on both sides alike.
"""

from __future__ import annotations

import asyncio
import base64
import io
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from foveate.benchmark.profiling import hardware
from foveate.benchmark.results import write_json
from foveate.core.errors import FoveateError
from foveate.core.full_model import FULL_MODEL

KIND = "serving"
#: Where a request names its plan, by kind of server.
DIALECTS: dict[str, Callable[[str], dict[str, Any]]] = {
    "foveate": lambda plan: {"foveate": {"plan": plan}},
    "vllm": lambda plan: {"mm_processor_kwargs": {"foveate_plan": plan}, "ignore_eos": True},
}


@dataclass(frozen=True)
class ServingSettings:
    """Settings of the serving benchmark.

    Args:
        url: The server's, up to and including /v1.
        plans: Next to the full model.
        dialect: How a request names a plan: a name of `DIALECTS`.
        clients: Numbers of clients that ask at the same time, each one question after the other.
        requests: Of one turn; at least one a client.
        turns: Times that everything is measured.
        side: Of the square images, in pixels; no two requests show the same one.
        new_tokens: Most tokens of an answer.
        question: What is asked.
        model: Its name at the server; empty: the first one that the server lists.
        api_key: What the server wants.
        timeout: Seconds until a request has failed.
    """

    url: str
    plans: tuple[str, ...]
    dialect: str = "foveate"
    clients: tuple[int, ...] = (1, 8, 32)
    requests: int = 32
    turns: int = 3
    side: int = 336
    new_tokens: int = 16
    question: str = "What is shown here? Answer at length."
    model: str = ""
    api_key: str = field(default="none", repr=False)
    timeout: float = 600.0

    def __post_init__(self) -> None:
        if not self.plans:
            raise FoveateError("name at least one plan, such as divprune:64, to compare with the full model.")
        if FULL_MODEL in self.plans or len(set(self.plans)) < len(self.plans):
            raise FoveateError("each plan is measured once, and the full model always; name other plans.")
        if self.dialect not in DIALECTS:
            raise FoveateError(f"{self.dialect!r} is not a kind of server; possible are {', '.join(DIALECTS)}.")
        for name, value in (("turns", self.turns), ("side", self.side), ("requests", self.requests)):
            if value < 1:
                raise FoveateError(f"{name} must be a positive integer, not {value}.")
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
    client = openai.AsyncOpenAI(
        base_url=settings.url, api_key=settings.api_key, max_retries=0, timeout=settings.timeout
    )
    plans = (FULL_MODEL, *settings.plans)
    measured: dict[tuple[int, str], list[dict[str, Any]]] = {}
    try:
        model = settings.model or (await client.models.list()).data[0].id
        for plan in plans:  # a first question to each, whose time does not count
            await _ask(client, model, settings, plan, _picture(settings.side, 0))
        for clients in settings.clients:
            for turn in range(settings.turns):
                shift = turn % len(plans)
                for plan in plans[shift:] + plans[:shift]:
                    seed = 1 + len(measured) + 1000 * turn + 1_000_000 * clients
                    result = await _turn(client, model, settings, plan, clients, seed)
                    measured.setdefault((clients, plan), []).append(result)
                    report(
                        f"{clients} clients, turn {turn + 1}, {plan}: {result['requests_per_second']:.3f} requests/s"
                    )
    except openai.OpenAIError as error:
        reason = getattr(error, "message", None) or str(error)
        raise FoveateError(f"the server at {settings.url} did not answer correctly: {reason}") from error
    finally:
        await client.close()
    described = {name: value for name, value in asdict(settings).items() if name != "api_key"}
    document = {
        "kind": KIND,
        "command": command,
        "note": note,
        "hardware": hardware(torch.device("cpu")),  # of the machine that asks
        "settings": {**described, "model": model},
        "rows": rows(measured, settings),
    }
    write_json(path, document)
    return document


async def _turn(
    client: Any, model: str, settings: ServingSettings, plan: str, clients: int, seed: int
) -> dict[str, Any]:
    """Run one turn under one plan: each client sends its next question once it has the answer."""
    count = max(settings.requests, clients)
    images = iter([_picture(settings.side, seed * 10_000 + number) for number in range(count)])
    answers: list[RequestTiming] = []

    async def ask() -> None:
        for image in images:
            answers.append(await _ask(client, model, settings, plan, image))

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


async def _ask(client: Any, model: str, settings: ServingSettings, plan: str, url: str) -> RequestTiming:
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": settings.question},
    ]
    start = time.perf_counter()
    stream = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": content}],
        max_tokens=settings.new_tokens,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body=DIALECTS[settings.dialect](plan),
    )
    times: list[float] = []
    usage = None
    async for piece in stream:
        if piece.choices and piece.choices[0].delta.content:
            times.append(time.perf_counter())
        usage = piece.usage or usage
    if usage is None or not times:
        raise FoveateError(f"the server at {settings.url} answered without text or without usage.")
    written = usage.completion_tokens
    gap = (times[-1] - times[0]) / (written - 1) if len(times) > 1 and written > 1 else None
    return RequestTiming(times[0] - start, gap, usage.prompt_tokens, written)


def _picture(side: int, seed: int) -> str:
    """Smooth random colours as a data URI: small to send, and unique to the request."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC).save(data, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()


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
