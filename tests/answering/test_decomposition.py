"""Questions in steps: what a language model writes is asked, and its answers are read before the question."""

import json

import numpy as np
import pytest

from foveate import FoveateError, compress
from foveate.answering import ask, ask_decomposed, decomposition
from foveate.answering.decomposition import sub_questions, whole_sentences
from foveate.cli import main
from foveate.clips import clip_of_frames
from foveate.commands.ask import printable
from foveate.loading import load
from tests.tiny_model import noise, save_qwen
from tests.video_files import save_clip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_qwen(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def qwen(folder):
    return load(folder)


@pytest.fixture(scope="module")
def clip():
    return clip_of_frames(np.random.default_rng(0).integers(0, 256, (4, 16, 32, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "1. What moves first?\n2) Where does it go?\n- Why?\nThat is all.",
            ["What moves first?", "Where does it go?", "Why?"],
        ),
        ("Sure! ['Who comes in?', \"Who leaves?\"] Good luck", ["Who comes in?", "Who leaves?"]),
        ('[see below]\n"What is next?"', ["What is next?"]),
        ("[1, 2]\n?\nnothing to ask", []),
    ],
)
def test_sub_questions_are_found_in_what_is_written(text, expected):
    assert sub_questions(text) == expected


def test_a_sentence_that_is_cut_off_is_left_out():
    assert whole_sentences("It rose 1.5 m. Then it fel") == "It rose 1.5 m."
    assert whole_sentences("no end") == "" and whole_sentences("Yes!") == "Yes!"


def test_answers_are_read_before_the_question(qwen, clip):
    asked = []

    def language_model(prompt):
        asked.append(prompt)
        return "What moves?\nWhat stays?\nWhat else?"

    result = ask_decomposed(
        clip, "What happens?", qwen, "dcode:50%", language_model=language_model, most=2, step_tokens=3, max_new_tokens=4
    )
    assert len(asked) == 1 and "What happens?" in asked[0]
    assert [step.question for step in result.steps] == ["What moves?", "What stays?"]
    for step in result.steps:
        assert step.text == ask(clip, step.question, qwen, "dcode:50%", max_new_tokens=3).text
        assert step.tokens.read == 8
    known = " ".join(filter(None, (whole_sentences(step.text) for step in result.steps)))
    assert result.answer.question == (f"{known}\nWhat happens?" if known else "What happens?")
    assert result.text == ask(clip, result.answer.question, qwen, "dcode:50%", max_new_tokens=4).text


def test_the_asked_model_writes_the_questions_itself(qwen, clip):
    result = ask_decomposed(clip, "What happens?", qwen, step_tokens=1, max_new_tokens=1)
    assert all(step.question.endswith("?") for step in result.steps)


def test_what_is_wrong_is_one_sentence(qwen, clip):
    for arguments, message in [
        ({"question": " "}, "the question is empty"),
        ({"most": 0}, "most is a number of sub-questions"),
        ({"budget": 4}, "a budget of 4 needs a plan"),
        ({"language_model": lambda prompt: ["What?"]}, "language_model returns the text that it writes, not list"),
        ({"clip": noise(16, 16)}, "asked in steps about one clip, not about images"),
        ({"clip": [clip, noise(16, 16)]}, "asked in steps about one clip, not about images"),
    ]:
        with pytest.raises(FoveateError, match=message):
            ask_decomposed(**{"clip": clip, "question": "What happens?", "model": qwen, **arguments})


def test_a_plan_next_to_an_attached_one_is_refused_as_by_ask(qwen, tmp_path):
    pytest.importorskip("av")
    path = save_clip(tmp_path / "a.mkv", frames=8, fps=4)
    with compress(qwen[0], "divprune:50%"):
        for plan in ("uniform-frames:2", "uniform-frames:2 + random:50%"):  # the first leaves nothing to attach
            for way in (ask, ask_decomposed):
                with pytest.raises(FoveateError, match="attached to this model already") as refused:
                    way(path, "What happens?", qwen, plan, max_new_tokens=1)
                assert refused.value.code == "attached-already"


def test_the_command_line_prints_sub_questions_and_their_answers(folder, qwen, tmp_path, capsys, monkeypatch):
    """A model with random weights writes no questions, so that the test writes them in its place."""
    pytest.importorskip("av")
    path = save_clip(tmp_path / "a.mkv", frames=8, fps=4)
    plan = "uniform-frames:4 + dcode:50%"
    line = ["ask", str(path), "Why?", "--model", str(folder), "--plan", plan, "--max-new-tokens", "4", "--decompose"]

    assert main(line) == 0
    assert "steps     none: the model wrote no question for this one" in capsys.readouterr().out

    monkeypatch.setattr(decomposition, "answer_batch", lambda *given: ["1. What moves?\n2. What stays?"])
    expected = ask_decomposed(path, "Why?", qwen, plan, max_new_tokens=4)
    assert main(line) == 0
    out = capsys.readouterr().out
    for step in expected.steps:
        assert f"question  {step.question}\nanswer    {printable(step.text)}\n" in out
        assert step.plan == plan
    assert printable(expected.text) in out and "2 sub-questions in" in out and f"plan      {plan}" in out

    assert main([*line, "--json", "--picture", str(tmp_path / "strip.png")]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [step["question"] for step in document["steps"]] == ["What moves?", "What stays?"]
    assert document["text"] == expected.text and (tmp_path / "strip.png").exists()

    noise(16, 16).save(tmp_path / "a.png")
    assert main(["ask", str(tmp_path / "a.png"), "Why?", "--model", str(folder), "--decompose"]) == 2
    assert "in steps about one clip, not about images" in capsys.readouterr().err
