"""Tests a server under load and with faults, and writes the results: `make soak`.

    python benchmarks/soak.py [--requests 2000] [--output benchmarks/results/soak.json]

A server of the embedded model runs as a separate process. It receives 200 concurrent requests with images of mixed
sizes, half of them streamed; requests of clients that disconnect in the middle of an answer; two thousand requests,
including invalid ones, while its memory is sampled; and SIGTERM while requests are open. Every answer is compared with
the first answer to the same question. The script fails if an answer is missing, duplicated or different, or if the
server does not become idle.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import torch

from foveate.benchmark.profiling import hardware, versions
from foveate.benchmark.results import write_json
from foveate.synthetic import render

#: Longest sides of the images, in pixels.
SIDES = (64, 128, 160, 224, 320, 448)
PLANS = ("divprune:50%", "fastv:50%@2", "full model", "pool:25%")


def requests() -> list[dict[str, Any]]:
    """One request per image size and plan."""
    found = []
    for number, side in enumerate(SIDES):
        picture = render("shape_colour", number, size=(side, side)).image
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What colour is it?"}]
        body = {"model": "embedded", "messages": [{"role": "user", "content": content}], "max_tokens": 6}
        found += [{**body, "foveate": {"plan": plan}} for plan in PLANS]
    return found


class Server:
    """A server process on a free port."""

    def __init__(self, *options: str) -> None:
        command = [sys.executable, "-m", "foveate", "serve", "--port", "0", "--threads", "1", *options]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if found := re.search(r"http://[\d.]+:\d+", line):
                self.address = found[0]
                break
        else:
            raise SystemExit("the server did not start.")

    @property
    def memory(self) -> int:
        """Resident memory in bytes."""
        return psutil.Process(self.process.pid).memory_info().rss

    def value(self, name: str) -> float:
        """A line of /metrics."""
        lines = httpx.get(f"{self.address}/metrics", timeout=60).text.splitlines()
        return next((float(line.split()[-1]) for line in lines if line.startswith(name)), 0.0)


async def answer(client: httpx.AsyncClient, body: dict[str, Any], stream: bool = False) -> str:
    """The text of an answer; retries while the queue is full, as clients do."""
    while True:
        if not stream:
            response = await client.post("/v1/chat/completions", json=body)
            if response.status_code == 200:
                return response.json()["choices"][0]["message"]["content"]
        else:
            async with client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response:
                if response.status_code == 200:
                    lines = [line async for line in response.aiter_lines()]
                    assert lines[-2:] == ["data: [DONE]", ""] or lines[-1] == "data: [DONE]", lines[-3:]
                    return "".join(re.findall(r'"delta":\{"content":"(.*?)"\}', "\n".join(lines)))
        assert response.status_code == 429, (response.status_code, await response.aread())
        await asyncio.sleep(0.2)


async def crowd(client: httpx.AsyncClient, expected: list[tuple[dict[str, Any], str]], count: int) -> dict[str, Any]:
    """Concurrent requests: each receives the same answer as alone."""
    start = time.perf_counter()
    asked = [expected[number % len(expected)] for number in range(count)]
    texts = await asyncio.gather(*(answer(client, body, number % 2 == 1) for number, (body, _) in enumerate(asked)))
    wrong = sum(text != right for text, (_, right) in zip(texts, asked, strict=True))
    return {"requests": count, "answers": len(texts), "other_answers": wrong, "seconds": time.perf_counter() - start}


async def vanish(client: httpx.AsyncClient, server: Server, body: dict[str, Any], count: int) -> dict[str, Any]:
    """Clients that disconnect after the first chunk, or while they wait."""

    async def leave(number: int) -> None:
        if number % 2:
            async with client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response:
                async for _ in response.aiter_lines():
                    return
        else:
            try:
                await client.post("/v1/chat/completions", json=body, timeout=0.3)
            except httpx.TimeoutException:
                return

    await asyncio.gather(*(leave(number) for number in range(count)))
    start = time.perf_counter()
    while server.value("foveate_running") + server.value("foveate_queue"):
        if time.perf_counter() - start > 120:
            raise SystemExit("the server still works for clients that left.")
        await asyncio.sleep(0.05)
    return {"clients": count, "seconds_to_rest": time.perf_counter() - start}


async def endure(
    client: httpx.AsyncClient, server: Server, expected: list[tuple[dict[str, Any], str]], count: int
) -> dict[str, Any]:
    """Many requests, four at a time, including invalid ones, while memory is sampled."""
    start = time.perf_counter()
    samples, done, wrong, refused = [], 0, 0, 0
    rng = random.Random(0)
    bad = [b"{", b'{"model": "embedded"}', b'{"model": "embedded", "messages": [{"role": "user", "content": 7}]}']
    while done < count:
        batch = [rng.choice(expected) for _ in range(4)]
        texts = await asyncio.gather(*(answer(client, body) for body, _ in batch))
        wrong += sum(text != right for text, (_, right) in zip(texts, batch, strict=True))
        done += len(batch)
        if done % 40 == 0:
            refused += (await client.post("/v1/chat/completions", content=rng.choice(bad))).status_code == 400
        if done % 100 == 0:
            samples.append({"requests": done, "bytes": server.memory})
            print(f"{done}/{count}  {samples[-1]['bytes'] / 2**20:.0f} MiB", file=sys.stderr)
    half = samples[len(samples) // 2 :]
    growth = statistics.linear_regression([one["requests"] for one in half], [one["bytes"] for one in half]).slope
    return {
        "requests": done,
        "other_answers": wrong,
        "refused": refused,
        "seconds": time.perf_counter() - start,
        "memory": samples,
        "bytes_per_request_in_the_second_half": growth,
    }


async def drain(
    client: httpx.AsyncClient, server: Server, expected: list[tuple[dict[str, Any], str]]
) -> dict[str, Any]:
    """SIGTERM while requests are open: each is answered, then the process exits with 0."""
    open_now = [asyncio.create_task(answer(client, body)) for body, _ in expected[:12]]
    while server.value("foveate_running") == 0:
        await asyncio.sleep(0.01)
    server.process.send_signal(signal.SIGTERM)
    texts = await asyncio.gather(*open_now, return_exceptions=True)
    answered = sum(text == right for text, (_, right) in zip(texts, expected[:12], strict=True))
    code = await asyncio.to_thread(server.process.wait, 60)
    return {"open": len(open_now), "answered": answered, "exit_code": code}


async def run(count: int) -> dict[str, Any]:
    """All tests, one after another."""
    server = Server("--queue", "150")
    try:
        limits = httpx.Limits(max_connections=300)
        async with httpx.AsyncClient(base_url=server.address, timeout=600, limits=limits) as client:
            expected = [(body, await answer(client, body)) for body in requests()]
            document = {"crowd": await crowd(client, expected, 200)}
            print("crowd", document["crowd"], file=sys.stderr)
            document["vanishing"] = await vanish(client, server, expected[-3][0] | {"max_tokens": 400}, 60)
            print("vanishing", document["vanishing"], file=sys.stderr)
            document["endurance"] = await endure(client, server, expected, count)
            document["drain"] = await drain(client, server, expected)
            print("drain", document["drain"], file=sys.stderr)
    finally:
        server.process.kill()
    return document


def main() -> int:
    """Run the tests, write the results, return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/soak.json"))
    asked = parser.parse_args()
    found = asyncio.run(run(asked.requests))
    command = f"python benchmarks/soak.py --requests {asked.requests}"
    head = {"kind": "soak", "command": command, "hardware": hardware(torch.device("cpu")), "versions": versions()}
    write_json(asked.output, head | found)
    drained = found["drain"]["answered"] == found["drain"]["open"] and not found["drain"]["exit_code"]
    return 0 if drained and not (found["crowd"]["other_answers"] or found["endurance"]["other_answers"]) else 1


if __name__ == "__main__":
    sys.exit(main())
