"""The examples: what they show, and that the embedded model answers them as the pages promise."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

import foveate
from foveate import shipped
from foveate.app.comparison import BASELINES, mean_budget
from foveate.images import open_image

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples"
DRAWINGS = runpy.run_path(str(FOLDER / "draw.py"))["DRAWINGS"]
SCRIPT = runpy.run_path(str(ROOT / "benchmarks/examples.py"))
RESULT = ROOT / "benchmarks/results/examples-embedded.json"
ASKED = [(one.name, *pair) for one in shipped.examples() for pair in one.questions]


@pytest.fixture(scope="module")
def model() -> Any:
    return foveate.load()


def test_every_example_is_its_drawing_and_has_its_answers() -> None:
    for one in shipped.examples():
        drawing = DRAWINGS[one.name](one.number)
        assert open_image(FOLDER / one.image).size == drawing.image.size
        assert set(one.questions) <= set(drawing.questions) and one.questions[0] == drawing.questions[0]
    assert len(set(ASKED)) == len(ASKED)


def test_drawings_are_of_the_domain(model: Any) -> None:
    """Nothing is too large or too small for the model, so that `ask` has no warnings."""
    from foveate.answering.limits import beyond_training

    for draw in DRAWINGS.values():
        for number in range(4):
            assert beyond_training(model[1], draw(number).image) == []
    assert DRAWINGS["receipt"](3).image.tobytes() == DRAWINGS["receipt"](3).image.tobytes()


def test_all_pages_have_these_questions_answers_and_the_plan() -> None:
    rows = re.findall(r"^\| \[(\w+)\.png\]\S+ \| (.+) \|$", (FOLDER / "README.md").read_text(), re.MULTILINE)
    listed = {(name, f"{question.strip()}?") for name, text in rows for question in text.strip(" ?").split("?")}
    assert listed == {(name, question) for name, question, _ in ASKED}
    lines = (FOLDER / "lmms-eval/questions.jsonl").read_text().splitlines()
    evaluated = [json.loads(line) for line in lines]
    assert [(Path(row["images"][0]).stem, row["question"], row["answer"]) for row in evaluated] == ASKED
    notebook = json.loads((FOLDER / "notebooks/compare-methods.ipynb").read_text())
    code = "".join(line for cell in notebook["cells"] for line in cell["source"])
    assert re.findall(r'\("\.\./(\w+)\.png", "(.+)", "(.+)"\),', code) == ASKED
    for page in SCRIPT["PAGES"]:
        text = (ROOT / page).read_text()
        shown = [match for pattern in SCRIPT["SHOWN"] for match in pattern.finditer(text)]
        assert shown
        for match in shown:
            plan = match[0].removeprefix(match[1]).partition(match[2])[2]
            assert plan == shipped.demonstration_plan() and ASKED[0][1] in match[0], page


@pytest.mark.parametrize(("name", "question", "answer"), ASKED)
def test_the_model_answers_every_suggested_question(model: Any, name: str, question: str, answer: str) -> None:
    assert foveate.ask(shipped.example(name), question, model, max_new_tokens=24).text == answer


def test_the_demonstration_shows_what_a_plan_is_for(model: Any) -> None:
    """The full model and the plan are right; random tokens and a smaller image, of the same number, are wrong."""
    name, question, answer = ASKED[0]
    image = shipped.example(name)
    planned = foveate.ask(image, question, model, shipped.demonstration_plan(), max_new_tokens=24)
    assert planned.text == answer and planned.tokens.share <= 0.5
    budget = mean_budget(planned, model[0].config.text_config.num_hidden_layers)
    for method in BASELINES:
        assert foveate.ask(image, question, model, method, budget, max_new_tokens=24).text != answer


def test_on_unchosen_drawings_the_plan_is_right_more_often_than_the_baselines() -> None:
    result = json.loads(RESULT.read_text())
    rows, right = result["rows"], result["right"]
    assert result["plan"] == shipped.demonstration_plan() and len(rows) >= 20
    assert right == SCRIPT["right"](rows)
    assert right["plan"] > max(right[method] for method in BASELINES)
    used = {(one.name, one.number) for one in shipped.examples()}
    assert not used & {(row["kind"], row["number"]) for row in rows}


@pytest.mark.slow
def test_the_answers_on_unchosen_drawings_are_those_of_the_model(model: Any) -> None:
    result = json.loads(RESULT.read_text())
    rows = SCRIPT["compare"](SCRIPT["replies_of"](model, result["plan"]), len(result["rows"]))
    for name, count in SCRIPT["right"](rows).items():
        assert abs(count - result["right"][name]) <= 1, name  # other processors round otherwise


# The search


def replies(right: set[str]) -> Any:
    """Contenders that read what is written in a drawing, and others that read nothing."""
    answers = {
        (drawing.image.tobytes(), question): answer
        for draw in DRAWINGS.values()
        for number in range(3)
        for drawing in [draw(number)]
        for question, answer in drawing.questions
    }

    def reply(image: Any, question: str) -> dict[str, Any]:
        known = answers.get((image.tobytes(), question), "")
        names = ("full model", "plan", *BASELINES)
        return {name: SCRIPT["Reply"](known if name in right else "", 10, 1.0) for name in names}

    return reply


def test_the_search_takes_the_first_drawing_whose_questions_are_answered() -> None:
    def texts(image: Any, question: str) -> str:
        if image.tobytes() == DRAWINGS["receipt"](0).image.tobytes() and question == "What is the total?":
            return ""
        return reply(image, question)["full model"].text

    reply = replies({"full model", "plan"})
    chosen = SCRIPT["choose"](texts, reply)
    assert [(one["name"], one["number"]) for one in chosen] == [("receipt", 1), ("form", 0), ("chart", 0)]
    first = DRAWINGS["receipt"](1).questions[: SCRIPT["MOST_QUESTIONS"]]
    assert [tuple(pair) for pair in chosen[0]["questions"]] == list(first)


def test_the_search_refuses_a_demonstration_that_random_tokens_answer_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCRIPT["choose"].__globals__, "MOST_DRAWINGS", 2)
    reply = replies({"full model", "plan", "random"})
    with pytest.raises(foveate.FoveateError, match="none of the first 2 drawings of a receipt"):
        SCRIPT["choose"](lambda image, question: reply(image, question)["full model"].text, reply)


def test_rows_and_counts() -> None:
    rows = SCRIPT["compare"](replies({"full model", "plan"}), 4)
    assert [(row["kind"], row["number"]) for row in rows] == [
        ("receipt", 2000), ("form", 2000), ("chart", 2000), ("receipt", 2001)
    ]  # fmt: skip
    assert SCRIPT["right"](rows) == dict.fromkeys(("full model", "plan", *BASELINES), 0)
    rows[0]["answers"]["plan"]["right"] = True
    assert SCRIPT["right"](rows)["plan"] == 1
