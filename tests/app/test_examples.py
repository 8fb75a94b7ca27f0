"""The table of examples: pictures that are there, answers that they show, and the questions that pages name."""

import re
from pathlib import Path

import pytest

from foveate.app.examples import examples
from foveate.images import open_image

FOLDER = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.question)
def test_the_picture_is_there_and_shows_the_answer(example):
    assert min(open_image(FOLDER / example.image).size) > 0
    assert example.question.endswith("?") and f'"{example.answer}"' in (FOLDER / "draw.py").read_text()


def test_the_readme_of_the_examples_asks_the_same_questions():
    rows = re.findall(r"^\| \[(\S+\.png)\]\S+ \| (.+) \|$", (FOLDER / "README.md").read_text(), re.MULTILINE)
    asked = {(image, f"{question.strip()}?") for image, text in rows for question in text.strip(" ?").split("?")}
    assert asked == {(example.image, example.question) for example in examples()}


def test_no_question_is_offered_twice():
    assert len({(example.image, example.question) for example in examples()}) == len(examples())
