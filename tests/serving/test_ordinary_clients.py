"""What ordinary clients send is taken: with the official client, and as the bodies that others write."""

from __future__ import annotations

import json
import math
from typing import Any

import httpx
import jsonschema
import openai
import pytest
from PIL import Image

import foveate
from foveate.answering.conversations import inputs_of_batch, messages_of
from foveate.cli import main
from foveate.core.errors import FoveateError
from foveate.serving import Limits, protocol
from foveate.serving.app import check_origins
from foveate.serving.fields import NEUTRAL
from tests.serving.live_server import EXAMPLES, Served, asking, data_uri, running

RECEIPT = data_uri((EXAMPLES / "receipt.png").read_bytes())
CHART = data_uri((EXAMPLES / "chart.png").read_bytes())
QUESTION = asking("What is the total?", RECEIPT)
HELLO = [{"role": "user", "content": "Hello?"}]


def said(served: Served, messages: list[Any] = QUESTION, **more: Any) -> Any:
    return served.client().chat.completions.create(model="embedded", messages=messages, **more)


def post(served: Served, **body: Any) -> httpx.Response:
    asked = {"model": "embedded", "messages": QUESTION, "max_tokens": 6, **body}
    return httpx.post(f"{served.address}/v1/chat/completions", json=asked, timeout=60)


def choices(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()["choices"]


def test_the_servers_own_message_goes_back_as_history(served: Served) -> None:
    first = said(served, max_tokens=8).choices[0].message
    dumped, plain = first.model_dump(), {"role": "assistant", "content": first.content}
    assert {"refusal", "annotations", "audio", "function_call", "tool_calls"} <= set(dumped)
    follow = {"role": "user", "content": "And what is the date?"}
    found = [
        said(served, [*QUESTION, one, follow], max_tokens=8).choices[0].message.content
        for one in (plain, first, dumped, {**dumped, "annotations": [], "tool_calls": [], "name": ""})
    ]
    assert found[0] and found == [found[0]] * 4
    pieces = said(served, [*QUESTION, first, follow], max_tokens=8, stream=True)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == found[0]


def test_refusals_in_the_history_are_what_was_said(served: Served) -> None:
    def after(**answer: Any) -> Any:
        return choices(post(served, messages=[*QUESTION, {"role": "assistant", **answer}, *HELLO]))

    said = after(content="I will not.")
    assert after(content=None, refusal="I will not.") == said
    assert after(content=[{"type": "refusal", "refusal": "I will not."}]) == said
    assert after(content=None) == after(content="")
    assert post(served, messages=[{"role": "user", "content": None}]).status_code == 400


@pytest.mark.parametrize("value", [None, [], {}, ""])
def test_a_field_without_value_is_as_if_left_out(value: Any) -> None:
    """Of every field that this server, OpenAI's and others have, and of one that nobody has."""
    part = {"type": "image_url", "image_url": {"url": "file:a.png"}}
    message = {"role": "user", "content": [part, {"type": "text", "text": "?"}]}
    body = {"model": "m", "messages": [message]}
    plain = protocol.parse(json.dumps(body).encode())
    own = set(protocol.ChatRequest.model_fields) - set(body)
    others = {"tools", "functions", "logit_bias", "audio", "chat_template_kwargs", "nobody_has_this", *NEUTRAL} - own
    for name in others | (own if value is None else set()):
        assert protocol.parse(json.dumps({**body, name: value}).encode()) == plain, name
    spoken = {**message, "tool_calls": value, "annotations": value, "audio": value, "cache_control": value}
    parts = [{**part, "text": value, "cache_control": value}, {"type": "text", "text": "?", "image_url": value}]
    parts[0]["image_url"] = {**part["image_url"], "uuid": value, **({"detail": None} if value is None else {})}
    assert protocol.parse(json.dumps({**body, "messages": [{**spoken, "content": parts}]}).encode()) == plain


def test_fields_at_the_values_that_change_nothing_are_taken(served: Served) -> None:
    plain = choices(post(served))
    assert choices(post(served, **{name: values[0] for name, values in NEUTRAL.items()})) == plain
    more = {"response_format": {"type": "text"}, "stop": [], "logprobs": False, "top_logprobs": 0, "n": 1}
    assert choices(post(served, **more, stream=False, stream_options=None)) == plain


@pytest.mark.parametrize(
    ("body", "field", "says"),
    [
        ({"tools": [{"type": "function"}]}, "tools", "call no tools"),
        ({"tool_choice": "required"}, "tool_choice", "call no tools"),
        ({"logit_bias": {"1": 5}}, "logit_bias", "one by one"),
        ({"response_format": {"type": "json_object"}}, "response_format", "held to a format"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format", "json_schema"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "'xml' is not possible"),
        ({"frequency_penalty": 2.5}, "frequency_penalty", "less than or equal to 2, not 2.5"),
        ({"presence_penalty": -3}, "presence_penalty", "greater than or equal to -2, not -3"),
        ({"length_penalty": 2}, "length_penalty", "does not know or support"),
        ({"top_k": -2}, "top_k", "greater than or equal to -1, not -2"),
        ({"top_k": 1.5}, "top_k", "a whole number"),
        ({"min_p": 1.5}, "min_p", "less than or equal to 1, not 1.5"),
        ({"repetition_penalty": 0}, "repetition_penalty", "greater than 0, not 0"),
        ({"modalities": ["text", "audio"]}, "modalities", "without sound"),
        ({"n": 9}, "n", "at most 8"),
        ({"n": "two"}, "n", "a whole number, not 'two'"),
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20, not 21"),
        ({"stop": list("abcde")}, "stop", "at most 4"),
        ({"stop": [1]}, "stop[0]", "a text, not 1"),
        ({"stop": 7}, "stop", "a list, not 7"),
        ({"seed": 1.5}, "seed", "a whole number"),
        ({"seed": 2**63}, "seed", "less than"),
        ({"temperature": "0.5"}, "temperature", "a number, not '0.5'"),
        ({"temperature": 3}, "temperature", "less than or equal to 2, not 3"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1, not 0"),
        ({"max_tokens": 4, "max_completion_tokens": 5}, "max_tokens", "max_completion_tokens"),
        ({"foveate": {"budget": [3]}}, "foveate.budget", "a share"),
        ({"foveate": {"budget": "many"}}, "foveate.budget", "is no budget"),
        ({"foveate": {"plan": "nosuch:3"}}, "foveate.plan", "unknown method"),
        ({"foveate": {"plam": "x"}}, "foveate.plam", "does not know"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": ["Hi"]}, "messages[0]", "an object, not 'Hi'"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "'tool' is not possible"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "missing"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content", "not 7"),
    ],
)  # fmt: skip
def test_errors_name_the_field(served: Served, body: dict[str, Any], field: str, says: str) -> None:
    response = post(served, **body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == field and error["message"].startswith(f"{field}: ") and says in error["message"]


@pytest.mark.parametrize(
    ("part", "field", "says"),
    [
        ("x", "", "an object, not 'x'"),
        ({"text": "x"}, ".type", "missing; possible are text, image_url"),
        ({"type": "input_text", "text": "x"}, ".type", "'input_text' is not possible; possible are text, image_url"),
        ({"type": "text"}, ".text", "missing"),
        ({"type": "text", "text": 5}, ".text", "a text, not 5"),
        ({"type": "image_url"}, ".image_url", "missing"),
        ({"type": "image_url", "image_url": RECEIPT}, ".image_url", 'an object, {"url": ...}, not'),
        ({"type": "image_url", "image_url": {}}, ".image_url.url", "missing"),
        ({"type": "image_url", "image_url": {"url": "x", "detail": "huge"}}, ".image_url.detail", "'huge' is not"),
        ({"type": "image_url", "image_url": {"url": "x"}, "text": "x"}, ".text", "does not know"),
        ({"type": "image_url", "image_url": {"url": "x"}}, ".image_url.url", "cannot be read"),
        ({"type": "image_url", "image_url": {"url": data_uri(b"no image")}}, ".image_url.url", "not an image"),
        ({"type": "refusal", "refusal": "No."}, ".type", "only assistant messages"),
    ],
)  # fmt: skip
def test_errors_name_the_part_and_what_is_wrong_in_it(served: Served, part: Any, field: str, says: str) -> None:
    good = {"type": "image_url", "image_url": {"url": RECEIPT}}
    response = post(
        served, messages=[*HELLO, {"role": "assistant", "content": "Hi."}, {"role": "user", "content": [good, part]}]
    )
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == f"messages[2].content[1]{field}"
    assert error["message"].startswith(f"{error['param']}: ") and says in error["message"]


@pytest.mark.parametrize("temperature", [1e-323, 1e-40, 1e-20, 1e-6, 9e-6, 2e-5, 1e-3])
def test_nearly_no_temperature_is_the_likeliest_token(served: Served, temperature: float) -> None:
    assert choices(post(served, temperature=temperature)) == choices(post(served, temperature=0))


def test_longer_answers_than_possible_are_clamped_and_a_header_says_so(embedded: Any) -> None:
    with running(*embedded, Limits(tokens=3)) as server:
        for name in ("max_tokens", "max_completion_tokens"):
            raw = server.client().chat.completions.with_raw_response.create(
                model="embedded", messages=QUESTION, **{name: 4096}
            )
            assert raw.headers["x-foveate-max-tokens"] == "3" and raw.parse().usage.completion_tokens == 3
            assert raw.parse().choices[0].finish_reason == "length"
        body = {"model": "embedded", "messages": QUESTION, "max_tokens": 4, "stream": True}
        with httpx.stream("POST", f"{server.address}/v1/chat/completions", json=body, timeout=60) as stream:
            assert stream.headers["x-foveate-max-tokens"] == "3" and "[DONE]" in stream.read().decode()
        assert "x-foveate-max-tokens" not in post(server, max_tokens=3).headers
    positions = embedded[0].config.get_text_config().max_position_embeddings
    with running(*embedded, Limits(tokens=100_000)) as server:
        answer = post(server, max_tokens=50_000)
        usage = answer.json()["usage"]
        left = positions - usage["prompt_tokens"]
        assert answer.headers["x-foveate-max-tokens"] == str(left)


def test_fields_without_effect_are_named_in_a_header(served: Served) -> None:
    detailed = [{"type": "image_url", "image_url": {"url": RECEIPT, "detail": "low"}}]
    answer = post(served, messages=[{"role": "user", "content": detailed}], user="me", metadata={"a": "b"}, store=False)
    assert answer.headers["x-foveate-ignored"] == "user, metadata, store, detail"
    assert "x-foveate-ignored" not in post(served, user=None, metadata={}).headers


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"min_p": 1}, {"top_p": 1e-6}])
def test_drawing_from_one_token_is_the_likeliest(served: Served, narrow: dict[str, float]) -> None:
    def texts(**more: Any) -> list[str]:
        answers = choices(post(served, messages=HELLO, temperature=2, n=4, seed=3, max_tokens=12, **more))
        return [answer["message"]["content"] for answer in answers]

    likeliest = choices(post(served, messages=HELLO, max_tokens=12))[0]["message"]["content"]
    assert texts(**narrow) == [likeliest] * 4
    assert len(set(texts())) > 1 and texts(top_k=0, min_p=0) == texts(top_k=-1) == texts()


def test_a_repetition_penalty_is_that_of_generate_and_1_is_none(served: Served, monkeypatch: Any) -> None:
    """Also where the model has one of its own, which a request without one keeps."""
    model, processor = served.engine.model, served.engine.processor
    image = Image.open(EXAMPLES / "receipt.png").convert("RGB")
    inputs = inputs_of_batch(model, processor, [messages_of([image], "What is the total?")])

    def answered(**more: Any) -> str:
        asked = post(served, max_tokens=12, foveate={"plan": "full model"}, **more)
        return choices(asked)[0]["message"]["content"]

    def expected(penalty: float) -> str:
        made = model.generate(**inputs, max_new_tokens=12, do_sample=False, repetition_penalty=penalty)
        new = made[:, inputs["input_ids"].shape[1] :]
        return processor.tokenizer.decode(new[0], skip_special_tokens=True).strip()

    found = [answered(), answered(repetition_penalty=10), answered(repetition_penalty=0.05)]
    assert found == [expected(1.0), expected(10.0), expected(0.05)] and len(set(found)) == 3
    monkeypatch.setattr(model.generation_config, "repetition_penalty", 10.0)
    assert [answered(), answered(repetition_penalty=1)] == [found[1], found[0]]


def test_penalties_of_what_an_answer_has(served: Served) -> None:
    def texts(**more: Any) -> list[str]:
        page = asking("Read the first line.", RECEIPT)
        answers = choices(post(served, messages=page, temperature=2, n=4, seed=3, max_tokens=40, **more))
        return [answer["message"]["content"] for answer in answers]

    def distinct(answers: list[str]) -> float:
        return sum(len(set(text)) for text in answers) / sum(map(len, answers))

    plain, repeating, varied = texts(), texts(frequency_penalty=-2), texts(presence_penalty=2)
    assert texts(frequency_penalty=0, presence_penalty=0.0) == plain
    assert len({*map(tuple, (plain, repeating, varied))}) == 3
    assert distinct(repeating) < distinct(varied)  # less than 0: likelier


def test_several_answers(served: Served) -> None:
    whole = said(served, n=3, temperature=2, seed=5, max_tokens=12)
    alone = [said(served, temperature=2, seed=5 + number, max_tokens=12) for number in range(3)]
    texts = [one.choices[0].message.content for one in alone]
    assert [choice.index for choice in whole.choices] == [0, 1, 2] and len(set(texts)) > 1
    assert [choice.message.content for choice in whole.choices] == texts
    assert whole.usage.completion_tokens == sum(one.usage.completion_tokens for one in alone)
    assert whole.usage.prompt_tokens == alone[0].usage.prompt_tokens
    streamed, ends = ["", "", ""], {}
    options = {"include_usage": True}
    for piece in said(served, n=3, temperature=2, seed=5, max_tokens=12, stream=True, stream_options=options):
        for choice in piece.choices:
            streamed[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                ends[choice.index] = choice.finish_reason
    assert streamed == texts and piece.usage == whole.usage
    assert ends == {choice.index: choice.finish_reason for choice in whole.choices}


def test_probabilities_of_tokens(served: Served) -> None:
    plain = said(served).choices[0]
    choice = said(served, logprobs=True, top_logprobs=3).choices[0]
    assert choice.message == plain.message and plain.logprobs is None
    tokens = choice.logprobs.content
    assert "".join(one.token for one in tokens) == choice.message.content
    for one in tokens:
        assert bytes(one.bytes).decode() == one.token and one.logprob <= 0 and len(one.top_logprobs) == 3
        likeliest = [other.logprob for other in one.top_logprobs]
        assert one.logprob == likeliest[0] and likeliest == sorted(likeliest, reverse=True)
        assert sum(map(math.exp, likeliest)) <= 1 + 1e-5
    drawn = said(served, logprobs=True, temperature=1.8, seed=4, max_tokens=12).choices[0]
    assert not drawn.logprobs.content[0].top_logprobs
    # Those of the model, whatever the temperature: the first token has the same prompt before it.
    chance = {
        one.token: one.logprob
        for one in said(served, logprobs=True, top_logprobs=20).choices[0].logprobs.content[0].top_logprobs
    }
    first = drawn.logprobs.content[0]
    assert first.token not in chance or chance[first.token] == pytest.approx(first.logprob, abs=1e-4)
    streamed = [
        one
        for piece in said(served, logprobs=True, top_logprobs=3, stream=True)
        for one in (piece.choices[0].logprobs.content if piece.choices[0].logprobs else ())
    ]
    assert streamed == tokens
    middle = choice.message.content[2]
    cut = said(served, logprobs=True, stop=middle).choices[0]
    assert "".join(one.token for one in cut.logprobs.content) == cut.message.content


def test_usage_counts_the_shortened_prompt(served: Served) -> None:
    def usage(plan: str, messages: list[Any] = QUESTION) -> Any:
        return said(served, messages, max_tokens=1, extra_body={"foveate": {"plan": plan}}).usage

    whole = usage("full model")
    before = whole.model_extra["foveate"]["visual_tokens"]
    text = whole.prompt_tokens - before
    for plan, kept in (
        ("full model", before),
        ("divprune:16", 16),
        ("divprune:16 + fastv:50%@2", 16),
        ("fastv:50%@2", before),
    ):
        found = usage(plan)
        details = found.prompt_tokens_details.model_dump(exclude_none=True)
        assert found.prompt_tokens == text + kept and found.total_tokens == found.prompt_tokens + 1
        assert details == {"text_tokens": text, "image_tokens": kept, "image_tokens_saved": before - kept}
    two = usage("divprune:16", asking("What is the total?", RECEIPT, CHART)).prompt_tokens_details.model_dump(
        exclude_none=True
    )
    assert two["image_tokens"] == 32 and two["image_tokens_saved"] > before - 16
    assert usage("divprune:16", HELLO).prompt_tokens_details.model_dump(exclude_none=True)["image_tokens"] == 0


def test_pages_of_named_origins_may_ask(embedded: Any) -> None:
    page = "https://example.org"
    asks = {
        "origin": page,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, x-a",
    }
    with running(*embedded, api_key="sesame", origins=(page, "http://localhost:3000")) as server:
        url = f"{server.address}/v1/chat/completions"
        before = httpx.options(url, headers=asks)
        assert before.status_code == 200 and before.headers["access-control-allow-origin"] == page
        assert "authorization" in before.headers["access-control-allow-headers"]
        assert httpx.options(url, headers={**asks, "origin": "https://evil.test"}).status_code == 400
        body = {"model": "embedded", "messages": QUESTION, "max_tokens": 2}
        for key, status in (("sesame", 200), ("wrong", 401)):  # what a page may read, errors too
            answer = httpx.post(url, json=body, headers={"origin": page, "authorization": f"Bearer {key}"}, timeout=60)
            assert answer.status_code == status and answer.headers["access-control-allow-origin"] == page
            assert "x-foveate-max-tokens" in answer.headers["access-control-expose-headers"]
        long = httpx.post(url, content=bytes(33 * 2**20), headers={"origin": page}, timeout=60)
        assert long.status_code == 413 and long.headers["access-control-allow-origin"] == page
        elsewhere = httpx.get(f"{server.address}/health", headers={"origin": "https://evil.test"})
        assert "access-control-allow-origin" not in elsewhere.headers
    with running(*foveate.load(plan=None)) as server:
        assert (
            "access-control-allow-origin" not in httpx.get(f"{server.address}/health", headers={"origin": page}).headers
        )
        assert httpx.options(f"{server.address}/v1/chat/completions", headers=asks).status_code == 405


@pytest.mark.parametrize(
    "origin", ["example.org", "https://example.org/", "https://example.org/a", "", "https://a b", "null"]
)
def test_origins_that_no_browser_sends(origin: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FoveateError, match="is not an origin"):
        check_origins([origin])
    assert main(["serve", "--cors-origin", origin]) == 2
    assert "is not an origin" in " ".join(capsys.readouterr().err.split())
    check_origins(["*", "https://example.org", "http://[::1]:3000", "chrome-extension://abc"])


def test_the_description_is_that_of_requests_and_answers(served: Served) -> None:
    described = httpx.get(f"{served.address}/openapi.json").json()
    chat = described["paths"]["/v1/chat/completions"]["post"]

    def check(kind: str, value: Any) -> None:
        schema = {"$ref": f"#/components/schemas/{kind}", "components": described["components"]}
        jsonschema.Draft202012Validator(schema).validate(value)

    options = {"include_usage": True}
    asked: dict[str, Any] = {"model": "embedded", "messages": QUESTION, "max_tokens": 3, "stop": "x", "n": 2, "seed": 1}
    asked |= {"logprobs": True, "top_logprobs": 1, "foveate": {"budget": 0.5}, "tool_choice": "auto"}
    asked |= {"stream_options": options}
    check("ChatRequest", asked)
    for wrong in ({"max_tokens": 0}, {"n": 9}, {"stop": 3}, {"messages": [{"role": "tool"}]}, {"frobnicate": 1}):
        with pytest.raises(jsonschema.ValidationError):
            check("ChatRequest", asked | wrong)
    check("Completion", post(served, **asked).json())
    check("ErrorBody", post(served, n=0).json())
    pieces = [
        json.loads(line[6:]) for line in post(served, **asked, stream=True).text.splitlines() if line[:7] == "data: {"
    ]
    for piece in pieces:
        check("Chunk", piece)
    assert pieces[-1]["usage"]
    assert chat["responses"]["200"]["headers"].keys() == {"x-foveate-max-tokens", "x-foveate-ignored"}
    routes = {path for path in described["paths"] if "{" not in path}
    for path in routes - {"/v1/chat/completions"}:
        assert httpx.get(served.address + path).status_code == 200


def test_docs_name_every_field_and_load_nothing(served: Served) -> None:
    response = httpx.get(f"{served.address}/docs")
    assert response.status_code == 200 and response.headers["content-type"].startswith("text/html")
    for name in (*protocol.ChatRequest.model_fields, *protocol.Message.model_fields, "image_tokens_saved", "/metrics"):
        assert f"<code>{name}</code>" in response.text or f" {name}</code>" in response.text, name
    assert (
        "<script" not in response.text
        and "src=" not in response.text
        and "http" not in response.text.replace("/v1", "").split("<h2", 1)[0]
    )


@pytest.mark.parametrize(
    "plan", ["pospad:64", "pospad(selector=divprune, marker=mean):64", "pospad(selector=hiprune):9"]
)
def test_methods_in_methods_name_no_files(plan: str) -> None:
    assert protocol.plan_of(protocol.Compression(plan=plan), None) == foveate.Plan.of(plan)


def test_a_chat_template_that_refuses_is_an_error_of_the_client(embedded: Any) -> None:
    model, processor = embedded
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    processor.chat_template = refusing + processor.chat_template
    with running(model, processor) as server:
        system = {"role": "system", "content": "Be brief."}
        with pytest.raises(openai.BadRequestError, match="System role not supported"):
            said(server, [system, *HELLO])
        assert said(server, HELLO, max_tokens=2).choices
