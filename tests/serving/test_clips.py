"""Clips in requests: answered as the library answers, counted, limited, and refused by the field that holds them."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

import foveate
from foveate.serving import Limits
from tests.picture_server import serving
from tests.serving.live_server import Served, asking, data_uri, running
from tests.tiny_model import noise, save_qwen
from tests.video_files import save_clip, save_frames, save_sound

pytest.importorskip("av")

LIMITS = Limits(tokens=8, clips=2, clip_bytes=2**20, clip_seconds=20, clip_frames=12, clip_pixels=12 * 32 * 16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_qwen(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def pair(folder: Path) -> Any:
    """A model apart from that of the server, which has its model to itself."""
    return foveate.load(folder, plan=None)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    save_clip(folder / "a.mkv", 16, 4)
    save_clip(folder / "b.mp4", 40, 4, codec="mpeg4")
    return folder


@pytest.fixture(scope="module")
def served(folder: Path, root: Path) -> Iterator[Served]:
    model = foveate.load(folder, plan=None)
    with running(*model, LIMITS, root=root, plan="uniform-frames:4 + random:50%") as server:
        yield server


def part(url: str) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": url}}


def about(question: str, *parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def said(served: Served, messages: list[dict[str, Any]], plan: str | None = None, **more: Any) -> Any:
    body = {} if plan is None else {"extra_body": {"foveate": {"plan": plan}}}
    return served.client().chat.completions.create(model="embedded", messages=messages, **body, **more)  # ty: ignore


def test_an_image_that_the_processor_refuses_is_the_requests_alone(served: Served) -> None:
    with ThreadPoolExecutor(4) as pool:
        sizes = [(32, 16), (300, 1), (32, 16), (1, 300)]
        answers = list(pool.map(lambda size: refusal_of(served, asking("?", data_uri(noise(*size)))), sizes))
    assert answers[0] == answers[2] == "" and all("aspect ratio" in answers[number] for number in (1, 3))


def refusal_of(served: Served, messages: list[dict[str, Any]]) -> str:
    try:
        said(served, messages)
    except openai.BadRequestError as error:
        return str(error)
    return ""


def uri(path: Path) -> str:
    return f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}"


@pytest.mark.parametrize("plan", [None, "full model", "scene + pool:4", "uniform-frames:6"])
def test_answers_are_those_of_the_library(served: Served, pair: Any, root: Path, plan: str | None) -> None:
    answer = said(served, about("What happens?", part("file:a.mkv")), plan)
    followed = plan or "uniform-frames:4 + random:50%"
    expected = foveate.ask(
        root / "a.mkv", "What happens?", pair, None if plan == "full model" else followed, max_new_tokens=8
    )
    assert answer.choices[0].message.content == expected.text
    usage = answer.usage.model_dump()
    details, counts = usage["prompt_tokens_details"], usage["foveate"]
    assert counts["plan"] == (None if plan == "full model" else followed)
    assert (counts["visual_tokens"], counts["visual_tokens_read"]) == (expected.tokens.full, expected.tokens.read)
    assert (details["video_tokens"], details["image_tokens"]) == (expected.tokens.read, 0)
    assert details["video_tokens_saved"] == expected.tokens.full - expected.tokens.read
    assert usage["prompt_tokens"] == expected.tokens.read + expected.tokens.text


def test_sources(served: Served, pair: Any, root: Path) -> None:
    texts = {
        said(served, about("What happens?", part(url)), "full model").choices[0].message.content
        for url in ("file:b.mp4", uri(root / "b.mp4"))
    }
    with serving((root / "b.mp4").read_bytes()) as address:
        host = address.removeprefix("http://")
        with running(*pair, LIMITS, hosts=(host,)) as other:
            texts.add(said(other, about("What happens?", part(f"{address}/a.png"))).choices[0].message.content)
            with pytest.raises(openai.BadRequestError, match=r"content\[0\].video_url.url.*not with a video"):
                said(other, about("?", part(f"{address}/none.mp4")))
            with pytest.raises(openai.BadRequestError, match="a video file may have at most 1 MiB here"):
                said(other, about("?", part(f"{address}/endless")))
    assert len(texts) == 1
    with pytest.raises(openai.BadRequestError, match="does not fetch from '127.0.0.1'; send the video as a data URI"):
        said(served, about("?", part("http://127.0.0.1/a.mp4")))


def test_images_and_clips_in_one_conversation(served: Served) -> None:
    image = {"type": "image_url", "image_url": {"url": data_uri(noise(32, 16))}}
    messages = [
        *about("What happens?", part("file:a.mkv")),
        {"role": "assistant", "content": "It becomes light."},
        *about("And here?", image, part("file:b.mp4")),
    ]
    usage = said(served, messages).usage
    details = usage.prompt_tokens_details.model_dump()
    alone = said(served, about("?", image)).usage.prompt_tokens_details.model_dump()
    assert details["image_tokens"] == alone["image_tokens"] == 4  # the sampler of the plan acts on clips alone
    assert details["video_tokens"] == 16 and alone["video_tokens"] is None
    assert usage.model_extra["foveate"]["visual_tokens"] == 40
    assert served.engine.metrics.registry.get_sample_value("foveate_clips_total") >= 2
    quarter = said(served, messages, extra_body={"foveate": {"budget": "25%"}}).usage.model_extra["foveate"]
    assert quarter["plan"] == "uniform-frames:4 + random:25%" and quarter["visual_tokens_read"] == 10


def test_what_is_refused_is_one_sentence_about_one_field(served: Served, root: Path, tmp_path: Path) -> None:
    big = np.random.default_rng(0).integers(0, 256, (40, 128, 160, 3), dtype=np.uint8)
    long, large, heavy = (
        save_clip(tmp_path / "long.mkv", 84, 4),
        save_clip(tmp_path / "large.mkv", 8, 4, (128, 64)),
        save_frames(tmp_path / "heavy.mkv", big),
    )
    clip = part("file:a.mkv")
    for messages, plan, message in [
        (about("?", part(uri(long))), None, r"url: the given video takes 21.0 s, and a clip may take 20 s here"),
        (about("?", part(uri(large))), None, r"4 frames of 128 x 64 pixels are above the limit of 0.00614 megapixels"),
        (about("?", part(uri(heavy))), None, "a video file may have at most 1 MiB here"),
        (about("?", clip), "uniform-frames:13", "at most 12 frames of a clip may be read here, not 13"),
        (about("?", clip, clip, clip), None, "messages: at most 2 clips are possible, not 3"),
        (about("?", part("data:video/mp4;base64,AAAA")), None, "the given video cannot be decoded as a video"),
        (about("?", part(uri(save_sound(tmp_path / "s.mp4")))), None, "the given video has no video"),
        (about("?", part(data_uri(noise(8, 8)))), None, "cannot be decoded as a video"),
        (about("?", part("file:../a.mkv")), None, "there is no file"),
        (about("?", part("ftp://host/a.mp4")), None, "possible are data URIs, file: under"),
        (about("?", {"type": "video_url", "video_url": "file:a.mkv"}), None, r"it must be an object, {\\?\"url"),
        (about("?", {"type": "video_url"}), None, "video_url: this field is missing"),
        (about("?", clip), "divprune:25% + scene:4", "must come first in a plan"),
        (about("?", clip), "query-frames(encoder=some/model):4", "names a file, which only the server's own plan"),
        (asking("?", "data:video/mp4;base64,AAAA"), None, "image_url.url: .*not an image"),
    ]:
        with pytest.raises(openai.BadRequestError, match=message):
            said(served, messages, plan)
    assert said(served, about("What happens?", clip)).choices[0].finish_reason in ("stop", "length")


def test_a_model_without_clips_says_so(embedded: Any, root: Path) -> None:
    refused = pytest.raises(openai.BadRequestError, match="take no clips here")
    with running(*embedded, LIMITS, root=root) as server, refused:
        said(server, about("?", part("file:a.mkv")))
