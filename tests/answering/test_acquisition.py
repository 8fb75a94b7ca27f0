"""A model that was trained to ask for more of an image does so: `ask`, many questions, and the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import foveate
from foveate import FoveateError
from foveate.answering.acquisition import answer_batch_acquiring, image_tokens_of, open_conversation
from foveate.answering.conversations import answer_batch, messages_of
from foveate.batch import Output, answer_file, read_questions
from foveate.cli import main
from foveate.core.plan import Plan
from foveate.methods.acquisition.visionthink import VisionThink
from foveate.training.methods.shared.acquisition import SHORT
from tests import asking_model
from tests.asking_model import FULL, picture

pytestmark = pytest.mark.xdist_group("asking model")


@pytest.fixture(scope="module")
def pair():
    return foveate.load(asking_model.folder())


def ask(pair, question: str, plan: str, **options):
    return foveate.ask(picture(), question, pair, plan, max_new_tokens=120, **options)


def test_a_direct_answer_costs_the_small_image_alone(pair) -> None:
    pieces: list[str] = []
    answer = ask(pair, "A", "visionthink", stream=pieces.append)
    (turn,) = answer.turns
    assert answer.text == "7" == "".join(pieces) and answer.plan == "visionthink" and not answer.warnings
    assert turn.text == asking_model.answer("7") and turn.call is None and turn.image_sizes == [(37, 28)]
    small = image_tokens_of(*pair, picture().resize((37, 28)))
    assert answer.tokens.read == turn.image_tokens == small < answer.tokens.full == image_tokens_of(*pair, picture())
    assert turn.prompt_tokens == small + answer.tokens.text


def test_a_call_shows_the_original_as_well(pair) -> None:
    answer = ask(pair, "B", "visionthink")
    first, second = answer.turns
    assert answer.text == "42" and first.text == FULL
    assert first.call == {"name": "resize_image", "arguments": {"action": "resize"}, "box": [0, 0, 64, 48]}
    assert second.image_sizes == [(37, 28), (64, 48)] and answer.image_sizes == [(64, 48)]
    assert second.image_tokens == answer.tokens.read == first.image_tokens + answer.tokens.full
    assert answer.tokens.generated == first.generated + second.generated
    assert answer.times["total"] >= answer.times["decode"] > 0
    # The second turn is the plain answer of the model to the whole conversation.
    messages = open_conversation(VisionThink(), SHORT, [
        {"role": "user", "content": [{"type": "image", "image": picture()}, {"type": "text", "text": "B"}]},
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": [{"type": "image", "image": picture()}]},
    ]).messages  # fmt: skip
    assert answer_batch(*pair, [messages], 60) == [second.text]


def test_a_model_that_names_no_end_writes_up_to_the_limit(pair, monkeypatch) -> None:
    monkeypatch.setattr(pair[0].generation_config, "eos_token_id", None)
    conversation = messages_of([picture()], "A")
    (answer,) = answer_batch_acquiring(
        *pair, [conversation], [50], VisionThink().resolve_weights(asking_model.folder())
    )
    assert answer.turns[0].generated == 50 and asking_model.answer("7") in answer.turns[0].text


def test_a_crop(pair) -> None:
    answer = ask(pair, "C", "adaptvision")
    assert answer.text == "9" and answer.turns[0].call is not None
    assert answer.turns[0].call["box"] == [3, 5, 34, 25] and answer.turns[1].image_sizes == [(37, 28), (31, 20)]
    assert answer.tokens.read < answer.tokens.full


@pytest.mark.parametrize(
    ("question", "plan", "turns", "sentence"),
    [
        ("D", "adaptvision", 1, "the model asks for the box [90, 90, 99, 99], which is empty in the image of 37 x 28"),
        ("E", "visionthink", 2, "the model asked for more of the image after its second turn; one call is possible."),
        ("F", "visionthink", 1, "the model's tool call has no end; if it was cut off, allow more new tokens."),
        ("B", "adaptvision", 1, "the model calls the tool 'resize_image'; possible is 'request_local_region'."),
    ],
)
def test_what_cannot_be_followed_is_said(pair, question: str, plan: str, turns: int, sentence: str) -> None:
    answer = ask(pair, question, plan)
    assert len(answer.turns) == turns and answer.text == answer.turns[-1].text
    assert len(answer.warnings) == 1 and answer.warnings[0].startswith(sentence)
    assert answer.to_dict()["turns"][-1]["problem"] == answer.warnings[0]


def test_other_steps_of_the_plan_act_in_both_turns(pair) -> None:
    # With all tokens kept the answers are the same; with half of them the image tokens are half.
    whole = ask(pair, "B", "visionthink + random:100%")
    assert whole.text == "42" and whole.plan == "visionthink + random:100%"
    half = ask(pair, "B", "visionthink + random:50%")
    assert half.turns[0].image_tokens == whole.turns[0].image_tokens / 2 and half.tokens.full == whole.tokens.full
    torch.testing.assert_close(half.tokens.share, half.tokens.read / half.tokens.full)


def test_questions_of_a_file(pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture().save(tmp_path / "a.png")
    lines: list[dict[str, Any]] = [{"image": "a.png", "question": name} for name in "ABE"]
    lines += [{"image": "a.png", "question": "C", "plan": "adaptvision"}, {"images": ["a.png"] * 2, "question": "B"}]
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    questions = read_questions(file)
    with Output(tmp_path / "out.jsonl", questions, False) as output:
        answer_file(*pair, questions, output, plan=Plan.of("visionthink"), max_new_tokens=120)
    rows = {row["number"]: row for row in map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())}
    plans = {"A": "visionthink", "B": "visionthink", "E": "visionthink", "C": "adaptvision"}
    for number, (question, plan) in enumerate(plans.items()):
        single, row = ask(pair, question, plan), rows[number]
        assert row["text"] == single.text and row["turns"] == len(single.turns)
        assert (row["image_tokens"], row["image_tokens_full"]) == (single.tokens.read, single.tokens.full)
        assert row.get("problems", []) == single.warnings
    assert rows[4]["error"].startswith("a model that asks for more of an image is asked about one image")
    arguments = ["ask", str(tmp_path / "a.png"), "B", "--model", str(asking_model.folder()), "--plan", "visionthink"]
    assert main([*arguments, "--max-new-tokens", "120"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("42\n") and "the model calls resize_image {'action': 'resize'}" in printed


def test_impossible_questions(pair) -> None:
    with pytest.raises(FoveateError, match="is asked about one image: give one, and no clip"):
        foveate.ask([picture(), picture()], "A", pair, "visionthink")
    with pytest.raises(FoveateError, match="a figure shows one image in one turn"):
        ask(pair, "A", "visionthink", keep_pooling=True)
    with pytest.raises(FoveateError, match="it must come first in a plan"):
        ask(pair, "A", "divprune:50% + visionthink")
    shown, called = {"type": "image", "image": picture()}, {"type": "text", "text": FULL}
    turn, image = (
        {"role": "user", "content": [shown, {"type": "text", "text": "A"}]},
        {"role": "user", "content": [shown]},
    )
    assert open_conversation(VisionThink(), SHORT, [turn, {"role": "assistant", "content": [called]}, image]).is_second
    for messages, sentence in (
        ([turn, {"role": "assistant", "content": "7"}, turn], "and the model's text holds none"),
        ([turn, {"role": "assistant", "content": FULL}], "is one question about one image, or its second turn"),
        ([{"role": "user", "content": "A"}], "is asked about one image"),
        ([{"role": "system", "content": [shown]}, turn], "reads text alone in messages of the system"),
        ([turn, {"role": "assistant", "content": [called, shown]}, image], "in messages of the assistant"),
        ([turn, {"role": "assistant", "content": FULL}, turn], "visionthink holds the image alone; leave its text out"),
    ):
        with pytest.raises(FoveateError, match=sentence):
            open_conversation(VisionThink(), SHORT, messages)
