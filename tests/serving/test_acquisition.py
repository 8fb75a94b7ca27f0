"""The server follows tool calls for more of an image, or hands them to the client."""

from __future__ import annotations

import json

import openai
import pytest

import foveate
from tests import asking_model
from tests.asking_model import FULL, picture
from tests.serving.live_server import asking, data_uri, running

pytestmark = pytest.mark.xdist_group("asking model")


@pytest.fixture(scope="module")
def client():
    model, processor = foveate.load(asking_model.folder(), plan=None)
    with running(model, processor, plan="visionthink") as server:
        yield server.client()


def chat(client, question: str, messages=None, **fields):
    messages = messages or asking(question, data_uri(picture()))
    return client.chat.completions.create(
        model=client.models.list().data[0].id, messages=messages, max_tokens=120, **fields
    )


def test_the_server_follows_calls(client) -> None:
    direct, asked = (chat(client, question) for question in "AB")
    assert direct.choices[0].message.content == asking_model.answer("7")
    assert asked.choices[0].message.content == asking_model.answer("42") and asked.choices[0].finish_reason == "stop"
    single = foveate.ask(picture(), "B", str(asking_model.folder()), "visionthink", max_new_tokens=120)
    counts = asked.usage.model_extra["foveate"]
    ((first, second),) = counts["turns"]
    assert [first["image_tokens"], second["image_tokens"]] == [turn.image_tokens for turn in single.turns]
    assert counts["visual_tokens"] == single.tokens.full and counts["visual_tokens_read"] == single.tokens.read
    assert asked.usage.prompt_tokens == first["prompt_tokens"] + second["prompt_tokens"]
    assert asked.usage.prompt_tokens_details.image_tokens == first["image_tokens"] + second["image_tokens"]
    assert asked.usage.completion_tokens == first["completion_tokens"] + second["completion_tokens"]
    assert len(direct.usage.model_extra["foveate"]["turns"][0]) == 1 and counts["problems"] == [None]


def test_what_cannot_be_followed_is_said(client) -> None:
    for question, sentence in (("E", "after its second turn"), ("F", "not enclosed in one")):
        (problem,) = chat(client, question).usage.model_extra["foveate"]["problems"]
        assert sentence in problem


def test_a_stream_holds_the_last_turn_alone(client) -> None:
    for question, text in (("A", asking_model.answer("7")), ("B", asking_model.answer("42"))):
        chunks = list(chat(client, question, stream=True, stream_options={"include_usage": True}))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
        assert chunks[-1].usage.model_extra["foveate"]["turns"]


@pytest.mark.parametrize("stream", [False, True])
def test_the_client_follows_a_call(client, stream: bool) -> None:
    hand_over = {"foveate": {"second_turn": "client"}}
    answer = chat(client, "B", extra_body=hand_over, stream=stream)
    if stream:
        chunks = [chunk.choices[0] for chunk in answer]
        content = "".join(chunk.delta.content or "" for chunk in chunks)
        (call,), reason = chunks[-1].delta.tool_calls, chunks[-1].finish_reason
    else:
        choice = answer.choices[0]
        content, (call,), reason = choice.message.content, choice.message.tool_calls, choice.finish_reason
    assert content == FULL and reason == "tool_calls"
    assert (call.function.name, json.loads(call.function.arguments)) == ("resize_image", {"action": "resize"})
    messages = [*asking("B", data_uri(picture())), {"role": "assistant", "content": content}]
    messages.append({"role": "user", "content": [{"type": "image_url", "image_url": {"url": data_uri(picture())}}]})
    last = chat(client, "B", messages, extra_body=hand_over)
    assert last.choices[0].message.content == asking_model.answer("42")
    assert not hasattr(last.choices[0].message, "tool_calls") or last.choices[0].message.tool_calls is None


def test_impossible_requests(client) -> None:
    for fields, messages, sentence in (
        ({"plan": "full model", "second_turn": "client"}, None, "foveate.second_turn: no second turn is possible"),
        ({"plan": "divprune:50% + visionthink"}, None, "foveate.plan: .* must come first"),
        ({"plan": "visionthink(prompts='/etc/hosts')"}, None, "names a file, which only the server's own plan may do"),
        ({}, [{"role": "user", "content": "A"}], "is asked about one image"),
    ):
        with pytest.raises(openai.BadRequestError, match=sentence):
            chat(client, "A", messages, extra_body={"foveate": fields})
