"""vLLM answers at every length of a nested connector, token by token, what `generate` answers with the same weights."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

from tests.integrations.vllm.test_models import PROMPTS, TEXT
from tests.integrations.vllm.vllm_engines import engine, in_process, keys, picture, save_connector, served, tokens

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Case:
    """A connector on an encoder, its default length, and plans with the number of tokens of an image."""

    connector: str
    encoder: str
    options: dict[str, Any]
    tokens: int
    plans: dict[str, int]
    wrong: str
    message: str


#: The pooling after the projector and in the connector, learned queries, and pooling before the projector.
CASES = [
    Case(
        "m3",
        "clip",
        {},
        64,
        {"m3:16": 16, "nested:4": 4, "nested:16 + divprune:7": 7, "fastervlm:12": 12},
        "nested:9",
        "average pooling over squares cannot make 9 tokens of 8 x 8 patches; possible are 1, 4, 16, 64",
    ),
    Case(
        "mqt",
        "siglip",
        {"num_queries": 36, "num_heads": 3},
        36,
        {"mqt:16": 16, "nested:5": 5, "mqt:25% + uniform:4": 4, "divprune:8": 8},
        "fastervlm:8",
        "tokens of this model stand for no part of the image",
    ),
    Case(
        "tokenflex",
        "clip",
        {"tokens": 36, "lengths": [4, 16, 36]},
        36,
        {"tokenflex:16": 16, "nested:9": 9, "tokenflex:25 + pool:6": 6, "divprune:8": 8},
        "tokenflex:8",
        "possible are square numbers from 1 to 64",
    ),
]


@dataclass
class Subject:
    """A model, and an engine that runs it under the first of its plans."""

    case: Case
    folder: Path
    model: Any
    full_model: list[list[int]]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.connector)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator[Subject]:
    case = request.param
    folder = save_connector(tmp_path_factory.mktemp(case.connector), case.connector, case.encoder, **case.options)
    full_model = in_process(folder, None, PROMPTS)
    with engine(folder, next(iter(case.plans))) as model:
        yield Subject(case, folder, model, full_model)


def test_two_lengths_in_one_batch_and_all_tokens(subject: Subject) -> None:
    """Every prompt at every length; then once more, from caches."""
    plans = [*subject.case.plans, "full model", None]
    own = next(iter(subject.case.plans))
    prompts = [prompt for prompt in PROMPTS for _ in plans]
    expected: list[Any] = [[] for _ in plans]
    for place, plan in enumerate(plans):
        name = own if plan is None else plan
        expected[place] = subject.full_model if name == "full model" else in_process(subject.folder, name, PROMPTS)
    assert len({str(answers) for answers in expected}) == len(plans) - 1  # every length matters; None is the first
    wanted = [answers[place] for place in range(len(PROMPTS)) for answers in expected]
    for _ in range(2):
        answers = served(subject.model, prompts, plans * len(PROMPTS))
        assert tokens(answers) == wanted


def test_prompts_have_the_tokens_of_the_length(subject: Subject) -> None:
    plans = subject.case.plans
    answers = served(subject.model, [PROMPTS[0]] * (len(plans) + 1), ["full model", *plans])
    lengths = [len(answer.prompt_token_ids) for answer in answers]
    saved = [lengths[0] - length for length in lengths[1:]]
    assert saved == [subject.case.tokens - count for count in plans.values()]
    text = f"<image>{TEXT}"
    named = [keys(subject.model, text, {"image": [picture(1)]}, None, plan)["image"][0] for plan in plans]
    assert len(set(named)) == len(plans)


def test_a_length_that_cannot_be_given_is_refused_and_the_engine_goes_on(subject: Subject) -> None:
    with pytest.raises(ValueError, match=subject.case.message):
        served(subject.model, PROMPTS[:1], subject.case.wrong)
    assert tokens(served(subject.model, PROMPTS[:1], "full model")) == subject.full_model[:1]


def test_without_a_plan_the_connector_gives_all_its_tokens(tmp_path: Path) -> None:
    """A connector of one length, which reads several hidden states of the encoder."""
    folder = save_connector(tmp_path, "tokenpacker", "clip", scale=2)
    expected = in_process(folder, None, PROMPTS)
    with engine(folder, "") as model:
        assert tokens(served(model, PROMPTS)) == expected
