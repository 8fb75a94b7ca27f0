"""Rendered screens: seeded, boxes on what they name, splits that share nothing they should not."""

import random

import numpy as np
import pytest

from foveate.core.errors import FoveateError
from foveate.synthetic.questions import wordings
from foveate.synthetic.screens import KINDS, LAYOUTS, SMALLEST, Screen, render_screen
from foveate.synthetic.words import split_of

SEEDS = range(10)


def inside(screen: Screen, box) -> str:
    """The characters whose centres lie in a box, in drawing order."""
    return "".join(c for c, x, y, _ in screen.characters if box.left < x < box.right and box.top < y < box.bottom)


def test_same_arguments_same_screen_and_the_global_state_is_left_alone():
    before = random.getstate()
    one, two, other = render_screen(3), render_screen(3), render_screen(4)
    np.testing.assert_array_equal(np.asarray(one.image), np.asarray(two.image))
    assert (one.elements, one.characters, one.meta) == (two.elements, two.characters, two.meta)
    assert other.elements != one.elements
    assert random.getstate() == before


@pytest.mark.parametrize("split", ["train", "heldout"])
@pytest.mark.parametrize("size", [None, SMALLEST, (640, 300)])
def test_a_box_covers_what_is_drawn_and_nothing_else(split, size):
    for seed in range(5):
        screen = render_screen(seed, split, size)
        assert size is None or screen.image.size == size
        pixels = np.asarray(screen.image)
        names = [element.name.lower() for element in screen.elements]
        assert len(names) == len(set(names)) >= 4
        for element in screen.elements:
            box = element.box
            assert 0 <= box.left < box.right <= screen.image.width
            assert 0 <= box.top < box.bottom <= screen.image.height
            assert element.name in element.instruction and element.kind in KINDS
            region = pixels[round(box.top) : round(box.bottom), round(box.left) : round(box.right)]
            assert len(np.unique(region.reshape(-1, 3), axis=0)) > 1, element  # something is drawn there
            if element.kind == "field":  # its name is to the left, on the same line
                left = box._replace(left=0, right=box.left)
                assert inside(screen, left).endswith(element.name.replace(" ", ""))
            elif element.kind != "icon":
                assert inside(screen, box) == element.name.replace(" ", "")
        boxes = [element.box for element in screen.elements]
        for i, a in enumerate(boxes):
            for b in boxes[i + 1 :]:
                apart = a.right <= b.left or b.right <= a.left or a.bottom <= b.top or b.bottom <= a.top
                assert apart, (screen.meta, a, b)


def test_every_kind_is_drawn_and_splits_share_no_name_and_no_layout():
    seen = {}
    for split in ("train", "heldout"):
        screens = [render_screen(seed, split, (480, 360)) for seed in SEEDS]
        assert {screen.meta["layout"] for screen in screens} <= set(LAYOUTS[split])
        elements = [element for screen in screens for element in screen.elements]
        named = [element for element in elements if element.kind != "icon"]
        assert all(split_of(word) == split for element in named for word in element.name.split())
        seen[split] = {element.name for element in named}, {element.kind for element in elements}
    assert not seen["train"][0] & seen["heldout"][0]
    assert not set(LAYOUTS["train"]) & set(LAYOUTS["heldout"])
    assert seen["train"][1] == set(KINDS)


def test_the_last_third_of_the_wordings_is_held_out():
    for seed in SEEDS:
        for element in render_screen(seed).elements:
            ways = wordings(f"screen.{element.kind}")
            reserved = [way.format(name=element.name) for way in ways[-(len(ways) // 3) :]]
            assert element.instruction.rstrip(".").lower() not in [way.rstrip(".").lower() for way in reserved]


def test_bad_arguments():
    with pytest.raises(FoveateError, match="train, heldout"):
        render_screen(0, "test")
    with pytest.raises(FoveateError, match="224 x 192"):
        render_screen(0, size=(100, 400))
