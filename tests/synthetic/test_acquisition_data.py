"""Pages of which half have small print, and degraded images."""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image

from foveate import FoveateError
from foveate.synthetic.degradations import LEVELS, STRENGTHS, degraded
from foveate.synthetic.small_print import small_print
from foveate.synthetic.words import split_of
from foveate.training.grpo import q_insight


def test_half_of_the_pages_have_small_print() -> None:
    heights: dict[bool, list[int]] = {True: [], False: []}
    for number in range(-20, 20):
        page = small_print(number)
        left, top, right, bottom = page.box
        assert page.small == (number % 2 == 1) and 0 <= left < right <= 128 and 0 <= top < bottom <= 96
        assert page.answer.isdigit() and len(page.answer) in (2, 3)
        heights[page.small].append(bottom - top)
    assert max(heights[True]) <= 13 < 17 <= min(heights[False])
    again = small_print(7)
    assert np.array_equal(np.asarray(again.image), np.asarray(small_print(7).image)) and again == again
    assert small_print(7, "heldout").answer != again.answer
    long = [page.answer for number in range(60) if len((page := small_print(number, "heldout")).answer) == 3]
    assert long and all(split_of(answer) == "heldout" for answer in long)
    assert small_print(1, size=(256, 192)).image.size == (256, 192)
    for arguments, sentence in (((1, "test"), "unknown split 'test'"), ((1, "train", (95, 64)), "at least 96 x 64")):
        with pytest.raises(FoveateError, match=sentence):
            small_print(*arguments)


def test_degradations_grow_with_their_level() -> None:
    assert tuple(STRENGTHS) == q_insight.CLASSES and LEVELS == q_insight.LEVELS
    image = Image.fromarray((np.random.default_rng(0).random((48, 64, 3)) * 255).astype(np.uint8)).resize((128, 96))
    original = np.asarray(image).astype(float)
    for kind in STRENGTHS:
        results = [degraded(image, kind, level, random.Random(0)) for level in LEVELS]
        errors = [float(((np.asarray(one.image) - original) ** 2).mean()) for one in results]
        assert errors == sorted(errors) and errors[0] > 0
        assert [one.score for one in results] == pytest.approx([4.2, 3.4, 2.6, 1.8, 1.0])
        same = degraded(image, kind, LEVELS[0], random.Random(0)).image
        assert np.array_equal(np.asarray(same), np.asarray(results[0].image))
    none = degraded(image, "null", "null", random.Random(0))
    assert none.score == 5 and np.array_equal(np.asarray(none.image), original)
    for kind, level in (("rain", "slight"), ("blur", "null"), ("null", "slight")):
        with pytest.raises(FoveateError, match="there is no degradation"):
            degraded(image, kind, level, random.Random(0))
