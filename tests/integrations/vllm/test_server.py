"""vLLM's server in processes of its own, with the plug-in found by its entry point and called over HTTP."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

import httpx
import numpy as np
import openai
from PIL import Image

from tests.integrations.vllm.vllm_engines import RATE, SAVE, WRITTEN, in_process, picture

pytestmark = pytest.mark.slow

TEMPLATE = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type == 'text' %}{{ c.text }}{% else %}<|vision_start|>"
    "{% if c.type == 'video' %}<|video_pad|>{% else %}<|image_pad|>{% endif %}<|vision_end|>{% endif %}"
    "{% endfor %}{% endif %}{% endfor %}"
)
TEXT = "What is it? B:"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = SAVE["qwen2.5-vl"](tmp_path_factory.mktemp("served"))
    (folder / "template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def client(folder: Path) -> Generator[openai.OpenAI]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--dtype", "float32", "--max-model-len", "512", "--enforce-eager", "--max-num-seqs", "4"]
    options += ["--media-io-kwargs", json.dumps({"video": {"fps": RATE}})]
    options += ["--trust-request-mm-kwargs", "--chat-template", str(folder / "template.jinja")]
    options += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "tiny"]
    environment = {**os.environ, "FOVEATE_PLAN": "divprune:9", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    # What `vllm serve` runs; the command itself asks for the version of a package that the CPU build is not called.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), *options]
    log = folder / "server.log"
    with log.open("w") as out, subprocess.Popen(command, env=environment, stdout=out, stderr=out) as server:
        try:
            for _ in range(600):
                if server.poll() is not None:
                    pytest.fail(log.read_text()[-4000:])
                try:
                    if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                        break
                except httpx.TransportError:
                    time.sleep(1)
            yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        finally:
            server.terminate()


def encoded(image: Image.Image, kind: str) -> bytes:
    data = io.BytesIO()
    image.save(data, kind)
    return data.getvalue()


def ask(client: openai.OpenAI, image: Image.Image, plan: str | None = None, frames: Sequence[bytes] = ()) -> Any:
    """What the server answers about an image and, after it, the frames of a clip in JPEG."""
    url = "data:image/png;base64," + base64.b64encode(encoded(image, "PNG")).decode()
    content: Any = [{"type": "image_url", "image_url": {"url": url}}]
    if frames:
        url = "data:video/jpeg;base64," + ",".join(base64.b64encode(frame).decode() for frame in frames)
        content += [{"type": "video_url", "video_url": {"url": url}}]
    content += [{"type": "text", "text": TEXT}]
    more: dict[str, Any] = {"return_token_ids": True, "ignore_eos": True}
    if plan is not None:
        more["mm_processor_kwargs"] = {"foveate_plan": plan}
    return client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": content}],
        max_tokens=WRITTEN,
        temperature=0,
        extra_body=more,
    )


def test_plans_of_the_engine_and_of_requests_over_http(client: openai.OpenAI, folder: Path) -> None:
    image = picture(3, 48, 40)
    prompt = (f"<image>{TEXT}", [image], [])
    whole = ask(client, image, "full model")
    for plan in (None, "pool:25%", "hiprune:20%"):
        for _ in range(2):
            answer = ask(client, image, plan)
            assert answer.choices[0].model_extra["token_ids"] == in_process(folder, plan or "divprune:9", [prompt])[0]
            assert answer.usage.prompt_tokens < whole.usage.prompt_tokens
    assert whole.choices[0].model_extra["token_ids"] == in_process(folder, None, [prompt])[0]


def test_a_clip_after_an_image_over_http(client: openai.OpenAI, folder: Path) -> None:
    image = picture(3, 48, 40)
    frames = [encoded(picture(frame, 48, 48), "JPEG") for frame in range(4)]
    video = np.stack([np.asarray(Image.open(io.BytesIO(frame))) for frame in frames])
    prompt = (f"<image><video>{TEXT}", [image], [video])
    tokens = {}
    for plan in ("full model", "evs:50%", "hiprune:20%"):
        expected = in_process(folder, None if plan == "full model" else plan, [prompt])[0]
        for _ in range(2):
            answer = ask(client, image, plan, frames)
            assert answer.choices[0].model_extra["token_ids"] == expected
        tokens[plan] = answer.usage.prompt_tokens
    assert tokens["full model"] - tokens["evs:50%"] == 15 + 36  # of 30 tokens of the image and 72 of the clip


@pytest.mark.parametrize("plan", ["fastv:50%@2", "nothing:8", "pospad(embedding=secret.safetensors):8"])
def test_a_plan_that_cannot_be_served_is_the_mistake_of_the_client(client: openai.OpenAI, plan: str) -> None:
    with pytest.raises(openai.BadRequestError, match="acts at the site 'decoder'|unknown method|names a file"):
        ask(client, picture(3), plan)
    assert ask(client, picture(3), "pool:9").usage.completion_tokens == WRITTEN
