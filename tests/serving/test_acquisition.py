"""The server follows tool calls for more of an image, or hands them to the client."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

import foveate
from foveate.answering.conversations import messages_of
from foveate.core.plan import Plan
from foveate.integrations.ray.cluster import Model, Replicas
from foveate.integrations.ray.pool import Pool, Replica
from foveate.serving import Engine, Limits
from foveate.serving.engine import Job
from foveate.serving.generation import Sampling
from foveate.serving.result import Result
from tests import asking_model
from tests.asking_model import FULL, picture
from tests.serving.live_server import answering, asking, data_uri, running, wait_until

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
    for question, sentence in (("E", "after its second turn"), ("F", "has no end")):
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
    assert (call.index, call.type) == (0, "function") and call.id
    assert (call.function.name, json.loads(call.function.arguments)) == ("resize_image", {"action": "resize"})
    messages = [*asking("B", data_uri(picture())), {"role": "assistant", "content": content}]
    messages.append({"role": "user", "content": [{"type": "image_url", "image_url": {"url": data_uri(picture())}}]})
    last = chat(client, "B", messages, extra_body=hand_over)
    if not stream:  # as it was received, with its call
        messages[1] = answer.choices[0].message
        assert chat(client, "B", messages, extra_body=hand_over).choices[0].message == last.choices[0].message
    assert last.choices[0].message.content == asking_model.answer("42")
    assert not hasattr(last.choices[0].message, "tool_calls") or last.choices[0].message.tool_calls is None


def test_a_second_turn_that_is_too_long_fails_alone() -> None:
    model, processor = foveate.load(asking_model.folder(), plan=None)
    alone = answered(model, processor, [("B", None), ("B, and nothing else", None)])
    short, long = (result.turns[1].prompt_tokens for result in alone)
    model.config.get_text_config().max_position_embeddings = long - 1
    first, second, third = answered(model, processor, [("B", None), ("B, and nothing else", None), ("A", None)])
    assert short < long and isinstance(second, foveate.FoveateError) and "positions" in str(second)
    assert len(first.turns) == 2 and first.text and asking_model.answer("42").startswith(first.text)
    assert third.text == asking_model.answer("7")


def test_a_call_that_ends_at_the_limit_is_followed_as_by_the_library() -> None:
    pair = foveate.load(asking_model.folder(), plan=None)
    limit = len(pair[1].tokenizer(FULL)["input_ids"])
    (result,) = answered(*pair, [("B", None)], limit)
    assert result.text == asking_model.answer("42") and len(result.turns) == 2
    assert foveate.ask(picture(), "B", pair, "visionthink", max_new_tokens=limit).text == "42"


def answered(model, processor, questions, limit: int = 120):
    """What an engine delivers at the end for questions with system prompts, answered in one batch."""
    ends: dict[int, Any] = {}
    engine = Engine(model, processor, Limits())
    for number, (question, system) in enumerate(questions):
        job = Job(
            messages_of([picture()], question, system),
            Plan.of("visionthink"),
            limit,
            Sampling(),
            (),
            lambda piece, number=number: isinstance(piece, (Result, Exception)) and ends.setdefault(number, piece),
        )
        engine._waiting.append(job)
    with engine:
        wait_until(lambda: len(ends) == len(questions))
    return [ends[number] for number in range(len(questions))]


def test_usage_of_several_answers(client) -> None:
    one, two = (chat(client, "A", n=n).usage for n in (1, 2))
    assert two.prompt_tokens == 2 * one.prompt_tokens
    for name in ("text_tokens", "image_tokens", "image_tokens_saved"):
        counts = [usage.prompt_tokens_details.model_dump()[name] for usage in (one, two)]
        assert counts[1] == 2 * counts[0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_pool_of_replicas_hands_calls_over_too() -> None:
    pytest.importorskip("ray", reason="Ray is an extra: foveate[ray]")
    limits = Limits()
    replica = Replica(Model(str(asking_model.folder())), limits, cpus=1)

    class Here:
        """A handle of Ray Serve to a replica in this process."""

        def options(self, **options: Any) -> Any:
            return self

        def remote(self, *arguments: Any) -> Any:
            return replica.answer(*arguments)

    with answering(Pool(Here(), "here", Replicas(), limits), plan="visionthink") as server:
        choice = chat(server.client(), "B", extra_body={"foveate": {"second_turn": "client"}}).choices[0]
        assert choice.finish_reason == "tool_calls" and choice.message.tool_calls[0].function.name == "resize_image"
        with pytest.raises(openai.BadRequestError) as refused:
            chat(server.client(), "A", extra_body={"foveate": {"plan": "fastv:50%@99"}})
        assert refused.value.code == "no-such-layer"  # as where no replicas are between
    replica.engine.stop()


def test_impossible_requests(client) -> None:
    for fields, messages, sentence in (
        ({"plan": "full model", "second_turn": "client"}, None, "foveate.second_turn: no second turn is possible"),
        ({"plan": "divprune:50% + visionthink"}, None, "foveate.plan: .* must come first"),
        ({"plan": "visionthink(prompts='/etc/hosts')"}, None, "names a file, which only the server's own plan may do"),
        ({}, [{"role": "user", "content": "A"}], "is asked about one image"),
    ):
        with pytest.raises(openai.BadRequestError, match=sentence):
            chat(client, "A", messages, extra_body={"foveate": fields})
