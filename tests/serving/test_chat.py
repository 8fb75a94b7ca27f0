"""Chats with the official client, over HTTP, on the embedded model."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

import foveate
from foveate.cli import main
from foveate.serving import Limits
from tests.serving.live_server import ANSWER, EXAMPLES, Served, asking, data_uri, running, wait_until

RECEIPT = data_uri((EXAMPLES / "receipt.png").read_bytes())
CHART = data_uri((EXAMPLES / "chart.png").read_bytes())


def said(served: Served, messages: list[dict[str, Any]], **more: Any) -> Any:
    return served.client().chat.completions.create(model="embedded", messages=messages, **more)


@pytest.mark.parametrize("plan", [None, "divprune:25%", "fastv:50%@2", "hiprune:50% + pyramiddrop:50%@1,3"])
def test_answers_are_those_of_the_library(served: Served, plan: str | None) -> None:
    question = "What is the total?"
    own = {} if plan is None else {"extra_body": {"foveate": {"plan": plan}}}
    answer = said(served, asking(question, RECEIPT), **own)
    expected = foveate.ask(EXAMPLES / "receipt.png", question, plan=plan or "divprune:50%")
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].finish_reason == "stop"
    usage = answer.usage.model_extra["foveate"]
    assert usage["plan"] == (plan or "divprune:50%")
    assert 0 < usage["visual_tokens_read"] < usage["visual_tokens"]
    assert usage["visual_tokens_read"] + usage["visual_tokens_saved"] == pytest.approx(usage["visual_tokens"], abs=0.01)


def test_plans_and_budgets_of_a_request(served: Served) -> None:
    messages = asking("What is the total?", RECEIPT)

    def tokens(**wanted: Any) -> tuple[int, float]:
        usage = said(served, messages, extra_body={"foveate": wanted}).usage.model_extra["foveate"]
        return usage["visual_tokens"], usage["visual_tokens_read"]

    whole, read = tokens(plan="full model")
    assert whole == read
    assert tokens(plan="random:10") == (whole, 10)
    assert tokens(budget=12) == tokens(budget="12") == (whole, 12)
    assert tokens(budget="25%") == tokens(budget=0.25) == (whole, round(whole / 4))


def test_a_stream_says_what_the_whole_answer_says(served: Served) -> None:
    messages = asking("What is the total?", RECEIPT)
    whole = said(served, messages)
    pieces = list(said(served, messages, stream=True, stream_options={"include_usage": True}))
    assert pieces[0].choices[0].delta.role == "assistant"
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert text == whole.choices[0].message.content and text
    assert len([piece for piece in pieces if piece.choices and piece.choices[0].delta.content]) > 1
    assert pieces[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert pieces[-1].usage == whole.usage and not pieces[-1].choices
    assert len({piece.id for piece in pieces}) == 1


def test_requests_are_answered_together_and_each_as_alone(embedded: Any) -> None:
    questions = [
        ("What is the total?", (RECEIPT,)), ("Which month has the highest bar?", (CHART,)),
        ("What is the date?", (RECEIPT,)), ("Is there a chart?", (CHART,)), ("Hello?", ()),
    ]  # fmt: skip
    with running(*embedded, Limits(batch=8), plan="divprune:50%") as server, ThreadPoolExecutor(10) as pool:
        alone = [said(server, asking(question, *urls), max_tokens=12) for question, urls in questions]
        engine = server.engine
        before = engine.metrics.registry.get_sample_value("foveate_batch_size_count")
        together = list(pool.map(lambda one: said(server, asking(one[0], *one[1]), max_tokens=12), questions * 2))
        batches = engine.metrics.registry.get_sample_value("foveate_batch_size_count") - before
    assert batches < len(together)
    for one, expected in zip(together, alone * 2, strict=True):
        assert one.choices == expected.choices and one.usage == expected.usage
    assert together[4].usage.model_extra["foveate"]["visual_tokens"] == 0


def test_lengths_stops_and_sampling(served: Served) -> None:
    messages = asking("What is the total?", RECEIPT)
    text = said(served, messages).choices[0].message.content
    cut = said(served, messages, max_completion_tokens=2)
    assert cut.choices[0].finish_reason == "length" and cut.usage.completion_tokens == 2
    assert text.startswith(cut.choices[0].message.content)
    middle = text[1:3]
    stopped = said(served, messages, stop=[middle, "never"])
    assert stopped.choices[0].message.content == text[: text.index(middle)]
    assert stopped.choices[0].finish_reason == "stop"
    drawn = [
        said(served, messages, temperature=1.8, seed=seed, max_tokens=16).choices[0].message.content
        for seed in (1, 1, 2, 3, 4)
    ]
    assert drawn[0] == drawn[1] and len(set(drawn)) > 1
    assert said(served, messages, temperature=1.8, top_p=1e-6, seed=3).choices[0].message.content == text


def test_chats_of_several_turns_and_images(served: Served) -> None:
    messages = [
        {"role": "system", "content": "Answer briefly."},
        *asking("What is the total?", RECEIPT),
        {"role": "assistant", "content": ANSWER},
        *asking("And what is the date?", CHART),
    ]
    with_two = said(served, messages, max_tokens=8).usage.model_extra["foveate"]["visual_tokens"]
    with_one = said(served, messages[:2], max_tokens=8).usage.model_extra["foveate"]["visual_tokens"]
    assert with_two > with_one


def test_files_under_the_root_only(served: Served, tmp_path: Any) -> None:
    inside = said(served, asking("What is the total?", "file:receipt.png"), max_tokens=4)
    root = served.client().models.list().data[0].id
    assert root == "embedded" and inside.usage.model_extra["foveate"]["visual_tokens"] > 0
    Image.new("RGB", (64, 64)).save(tmp_path / "outside.png")
    for path in (
        "../outside.png",
        f"/{tmp_path}/outside.png",
        "/etc/passwd",
        "note.txt",
        "missing.png",
        "%2e%2e/x",
        "%00",
    ):
        with pytest.raises(openai.BadRequestError):
            said(served, asking("?", f"file://{path}" if path.startswith("/") else f"file:{path}"))


def test_a_key_and_names(embedded: Any) -> None:
    with running(*embedded, api_key="sesame") as server:
        assert server.client("sesame").models.retrieve("embedded").id == "embedded"
        with pytest.raises(openai.AuthenticationError):
            server.client("wrong").models.list()
        with pytest.raises(openai.NotFoundError, match="there is no model"):
            server.client("sesame").chat.completions.create(model="other", messages=asking("?"))
        assert httpx.get(f"{server.address}/health").json()["status"] == "ok"
        assert httpx.get(f"{server.address}/nowhere").status_code == 404


@pytest.mark.parametrize("key", ["", " ", "two words", "schlüssel", "a\n"])
def test_keys_that_would_protect_nothing(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--api-key", key]) == 2
    assert "an API key has one or more visible ASCII characters" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("way", ["streamed", "whole", "waiting"])
def test_clients_that_leave_free_their_work(embedded: Any, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    with running(*embedded, Limits(tokens=1500)) as server:
        engine = server.engine
        reasons: list[str] = []
        record = engine.metrics.answered

        def answered(result: Any, *rest: Any) -> None:
            reasons.append(result.reason)
            record(result, *rest)

        monkeypatch.setattr(engine.metrics, "answered", answered)
        # No end of text, so that only the client's leaving can end these.
        monkeypatch.setattr(engine.model.generation_config, "eos_token_id", 10**6)
        stream = None
        if way != "whole":
            stream = said(server, asking("?", RECEIPT), stream=True, max_tokens=1500)
            next(iter(stream))
            assert engine._running == 1
        if way != "streamed":
            with pytest.raises(openai.APITimeoutError):
                said(server, asking("?"), max_tokens=1500, timeout=0.3, extra_body={"foveate": {"plan": "full model"}})
        if stream is not None:
            stream.close()
        wait_until(lambda: engine._running == 0 and engine.state["waiting"] == 0)
        monkeypatch.undo()
        answer = said(server, asking("What is the total?", RECEIPT))
        assert answer.choices[0].message.content == ANSWER
    # A request that waited may have begun after the stream.
    assert reasons and set(reasons) == {"cancelled"}


def test_a_full_queue_says_so(embedded: Any) -> None:
    with running(*embedded, Limits(queue=1, batch=1)) as server, ThreadPoolExecutor(12) as pool:

        def status(number: int) -> int:
            try:
                said(server, asking("What is the total?", RECEIPT))
            except openai.APIStatusError as error:
                return error.status_code if error.response.headers["retry-after"] else 0
            return 200

        found = list(pool.map(status, range(12)))
    assert set(found) == {200, 429}


def test_metrics_count_what_was_done(served: Served) -> None:
    def value(name: str) -> float:
        lines = httpx.get(f"{served.address}/metrics").text.splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith(name))

    names = [
        "foveate_visual_tokens_before_total",
        "foveate_visual_tokens_read_total",
        "foveate_completion_tokens_total",
        'foveate_requests_total{status="200"}',
        "foveate_images_total",
    ]
    said(served, asking("Hi"))
    before = [value(name) for name in names]
    answer = said(served, asking("What is the total?", RECEIPT))
    usage = answer.usage.model_extra["foveate"]
    expected = [usage["visual_tokens"], usage["visual_tokens_read"], answer.usage.completion_tokens, 1, 1]
    assert [value(name) - old for name, old in zip(names, before, strict=True)] == pytest.approx(expected)
    assert value("foveate_time_to_first_token_seconds_count") > 0 and value("foveate_queue") == 0
