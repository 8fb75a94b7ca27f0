"""A server of a model with a nested connector: every request chooses its number of visual tokens."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

import foveate
from foveate.serving import Limits
from tests.serving.live_server import EXAMPLES, Served, asking, data_uri, running

LLAVA = Path(__file__).parents[2] / "benchmarks" / "models" / "measure-llava"
RECEIPT, CHART = (data_uri((EXAMPLES / name).read_bytes()) for name in ("receipt.png", "chart.png"))
QUESTION = "What is the total?"
#: Tokens without a plan, plans with their numbers of tokens, and a number that is impossible with what is possible.
CONNECTORS: dict[str, tuple[int, dict[str, int], str, str]] = {
    "m3": (
        576,
        {"m3:144": 144, "m3:36": 36, "m3:1": 1, "nested:9": 9, "nested:25%": 144},
        "nested:100",
        "possible are 1, 4, 9, 16",
    ),
    "mqt": (256, {"mqt:16": 16, "mqt:2": 2, "nested:100": 100}, "", ""),
    "tokenflex": (
        256,
        {"tokenflex:64": 64, "tokenflex:9": 9, "nested:144": 144},
        "tokenflex:65",
        "square numbers from 1",
    ),
}


@pytest.fixture(scope="module", params=CONNECTORS)
def nested(request: pytest.FixtureRequest) -> Iterator[tuple[str, Served, dict[str, str]]]:
    """The name of a connector, a server of a model with it, and the answers of the library by plan."""
    name = request.param
    torch.manual_seed(0)
    model, processor = foveate.swap_connector(*foveate.load(str(LLAVA), plan=None, dtype="float32"), name)
    for weight in model.model.multi_modal_projector.parameters():
        weight.data *= 3  # so that answers depend on the image
    answers = {}
    for plan in CONNECTORS[name][1]:
        with foveate.compress(model, plan):
            answers[plan] = answer(model, processor)
    with running(model, processor, Limits(batch=4)) as server:
        yield name, server, answers


def answer(model: Any, processor: Any) -> str:
    """The answer of the library to the question about the receipt, in at most 6 tokens."""
    content = [{"type": "image", "path": str(EXAMPLES / "receipt.png")}, {"type": "text", "text": QUESTION}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    written = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return processor.tokenizer.decode(written, skip_special_tokens=True).strip()


def said(served: Served, plan: str | None, *urls: str, **more: Any) -> Any:
    more |= {} if plan is None else {"extra_body": {"foveate": {"plan": plan}}}
    messages = asking(QUESTION, *(urls or (RECEIPT,)))
    create: Any = served.client().chat.completions.create
    return create(model="embedded", messages=messages, max_tokens=6, **more)


def test_every_request_has_its_length(nested: Any) -> None:
    name, server, answers = nested
    full = CONNECTORS[name][0]
    whole = said(server, None).usage
    assert whole.model_extra["foveate"]["visual_tokens_read"] == full
    text = whole.prompt_tokens - full
    for plan, count in CONNECTORS[name][1].items():
        response = said(server, plan)
        assert response.choices[0].message.content.strip() == answers[plan]
        usage = response.usage
        assert usage.prompt_tokens == text + count
        details = usage.prompt_tokens_details.model_dump()
        assert (details["text_tokens"], details["image_tokens"]) == (text, count)
        assert details["image_tokens_saved"] == full - count
        assert usage.model_extra["foveate"] == {
            "plan": plan,
            "visual_tokens": full,
            "visual_tokens_read": count,
            "visual_tokens_saved": full - count,
        }
    plan, count = next(iter(CONNECTORS[name][1].items()))
    two = said(server, plan, RECEIPT, CHART).usage
    assert two.prompt_tokens_details.model_dump()["image_tokens"] == 2 * count


def test_lengths_that_wait_together_are_answered_as_alone(nested: Any) -> None:
    name, server, _ = nested
    wanted = [(plan, url) for plan in (None, *CONNECTORS[name][1]) for url in (RECEIPT, CHART)] * 2
    alone = {one: said(server, *one) for one in set(wanted)}
    with ThreadPoolExecutor(len(wanted)) as pool:
        together = list(pool.map(lambda one: said(server, *one), wanted))
    for one, response in zip(wanted, together, strict=True):
        assert response.choices == alone[one].choices and response.usage == alone[one].usage


def test_the_length_of_a_streamed_answer(nested: Any) -> None:
    name, server, answers = nested
    plan, count = next(iter(CONNECTORS[name][1].items()))
    pieces = list(said(server, plan, stream=True, stream_options={"include_usage": True}))
    assert "".join(one.choices[0].delta.content or "" for one in pieces if one.choices).strip() == answers[plan]
    assert pieces[-1].usage.model_extra["foveate"]["visual_tokens_read"] == count


def test_impossible_lengths_are_refused_with_the_possible_ones(nested: Any) -> None:
    name, server, _ = nested
    _, plans, plan, possible = CONNECTORS[name]
    if plan:
        with pytest.raises(openai.BadRequestError, match=possible):
            said(server, plan)
    for other in set(CONNECTORS) - {name, "m3"}:
        with pytest.raises(openai.BadRequestError, match=other):
            said(server, f"{other}:16")
    first, count = next(iter(plans.items()))
    assert said(server, first).usage.model_extra["foveate"]["visual_tokens_read"] == count


def test_a_budget_alone_uses_the_method_of_the_server() -> None:
    pair = foveate.swap_connector(*foveate.load(str(LLAVA), plan=None), "m3")
    with running(*pair, plan="nested:144") as server:
        assert said(server, None).usage.model_extra["foveate"]["visual_tokens_read"] == 144
        short = said(server, None, extra_body={"foveate": {"budget": 36}})
        assert short.usage.model_extra["foveate"] == {
            "plan": "nested:36",
            "visual_tokens": 576,
            "visual_tokens_read": 36,
            "visual_tokens_saved": 540,
        }
        with pytest.raises(openai.BadRequestError, match="possible are 1, 4, 9, 16, 36, 64, 144, 576"):
            said(server, None, extra_body={"foveate": {"budget": 100}})
