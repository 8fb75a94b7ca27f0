"""Questions that ask what is written after a word."""

from __future__ import annotations

import random

from foveate.synthetic import render
from foveate.synthetic.continuation import read_on
from foveate.synthetic.sample import Character


def _characters(lines: list[str]) -> list[Character]:
    return [
        Character(char, 10.0 * column, 20.0 * row, 20.0 * row)
        for row, line in enumerate(lines)
        for column, char in enumerate(line)
        if char != " "
    ]


def test_the_answer_is_what_follows_the_word():
    lines = ["Total 12.30", "Date 1999", "a bb Date"]
    for seed in range(40):
        found = read_on(random.Random(seed), "train", lines, _characters(lines))
        assert found is not None
        question, answer = found
        # "Date" is written twice, "a" and "bb" are too short.
        after = {"Total": "12.30 Date 1999 a bb Date", "1999": "a bb Date"}
        assert answer == next(text for word, text in after.items() if word in question)


def test_the_answer_ends_at_the_longest_and_at_a_jump_upwards():
    lines = ["one two three four five six"]
    found = read_on(random.Random(0), "train", lines, _characters(lines), longest=12)
    assert found is not None
    assert len(found[1]) <= 12
    assert found[1] in lines[0]
    turned = [*_characters(["zz yyy ww"])[5:], *_characters(["zz yyy ww"])[:5]]
    assert read_on(random.Random(0), "train", ["ww", "zz yyy"], turned) is None


def test_texts_that_are_not_what_was_drawn_give_no_question():
    assert read_on(random.Random(0), "train", ["one two"], _characters(["one tw"])) is None
    assert read_on(random.Random(0), "train", [], []) is None


def test_pages_of_the_renderer_have_a_continuation():
    found = 0
    for seed in range(10):
        page = render("read_field", seed, size=(300, 240), difficulty=0.3)
        further = read_on(random.Random(seed), "train", page.runs, page.characters)
        if further is not None:
            drawn = "".join(character.char for character in page.characters)
            assert further[1].replace(" ", "") in drawn
            found += 1
    assert found >= 8
