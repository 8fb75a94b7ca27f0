"""What is asked about shapes, charts and receipts is true of the picture."""

from collections import Counter

import numpy as np
import pytest

from foveate.synthetic import questions, render
from foveate.synthetic.shapes import COLOURS


@pytest.fixture(autouse=True)
def no_slips(monkeypatch):
    """These tests read the questions."""
    monkeypatch.setattr(questions, "TYPOS", 0.0)


def test_counts_are_right():
    answers = Counter()
    for seed in range(60):
        sample = render("count_shapes", seed, difficulty=seed % 4 / 4)
        shapes, kind = sample.meta["shapes"], sample.meta["kind"]
        words = sample.question.lower().replace("?", "").replace(".", "").replace(",", "").split()
        if kind == "all":
            expected = len(shapes)
        elif kind == "colour":
            expected = sum(any(word == s.split()[0] for word in words) for s in shapes)
        else:
            plural = {s.split()[1]: s.split()[1] + ("es" if s.endswith("cross") else "s") for s in shapes}
            fits = [s for s in shapes if plural[s.split()[1]] in words]
            expected = sum(kind == "kind" or s.split()[0] in words for s in fits)
        assert sample.answer == str(expected), (sample.question, shapes)
        answers[sample.answer] += 1
    assert len(answers) > 4


@pytest.mark.parametrize("task", ["shape_colour", "shape_kind"])
def test_the_shape_asked_for_is_the_only_one(task):
    for seed in range(40):
        sample = render(task, seed)
        shapes = [shape.split() for shape in sample.meta["shapes"]]
        at = 0 if task == "shape_colour" else 1
        words = sample.question.lower().replace("?", " ").replace(".", " ").replace(",", " ").split()
        named = [s for s in shapes if s[1 - at] in words]
        assert len(named) == 1 or (not named and len(shapes) == 1)
        assert (named or shapes)[0][at] == sample.answer


def test_existence_is_told_truly():
    for seed in range(60):
        sample = render("shape_exists", seed)
        shapes = [shape.split() for shape in sample.meta["shapes"]]
        question = sample.question.lower().replace("?", "").replace(".", "").replace(",", "")
        words = question.split()
        negated = "not" in words or "no" in words
        what = words[max(i for i, w in enumerate(words) if w in ("a", "an", "no", "any")) + 1 :]
        colour = what[0] if what[0] in COLOURS else None
        kind = what[1] if colour else what[0]
        present = any((colour in (None, c)) and (kind in ("shape", k)) for c, k in shapes)
        assert sample.answer == ("yes" if present != negated else "no"), (sample.question, shapes)


def test_the_drawn_colour_is_the_named_one():
    """The commonest colour of the picture besides the ground is near the answer's."""
    for seed in range(25):
        sample = render("shape_colour", seed, size=(128, 128), difficulty=0)
        if len(sample.meta["shapes"]) > 1:
            continue
        pixels = np.asarray(sample.image).reshape(-1, 3).astype(int)
        ground = pixels[0]
        drawn = pixels[np.abs(pixels - ground).sum(1) > 60]
        if not len(drawn):
            continue
        middle = np.median(drawn, 0)
        nearest = min(COLOURS, key=lambda name: np.abs(middle - COLOURS[name]).sum())
        assert nearest == sample.answer


def test_fields_of_a_form_have_one_answer():
    """No label lies within another, so a question names one field."""
    for seed in range(40):
        sample = render("read_field", seed, difficulty=1)
        text = "".join(c.char for c in sample.characters).lower()
        label = sample.meta["label"].replace(" ", "").lower()
        assert label in text
        questions = [sample.question, *(question for question, _ in sample.more)]
        answers = [sample.answer, *(answer for _, answer in sample.more)]
        assert len(set(map(str.lower, answers))) == len(answers)
        assert len(set(questions)) == len(questions)


def test_held_out_families_are_not_used_in_training():
    from foveate.synthetic import families, families_of

    train, heldout = ({font.path for family in families_of(s) for font in family} for s in ("train", "heldout"))
    assert train
    assert heldout
    if len(families()) >= 2:
        assert train.isdisjoint(heldout)


def test_shapes_say_where_they_are():
    for seed in range(8):
        sample = render("count_shapes", seed, difficulty=0)
        assert sorted(thing.char for thing in sample.things) == sorted(s.split()[1] for s in sample.meta["shapes"])
        pixels = np.asarray(sample.image).astype(int)
        for thing in sample.things:
            assert np.abs(pixels[int(thing.y), int(thing.x)] - pixels[0, 0]).sum() > 60, (seed, thing)
