"""Where characters are said to be is where their ink is."""

import random

import numpy as np
import pytest
from PIL import Image

from foveate.synthetic import families_of, render_text_page
from foveate.synthetic.augmentation import degrade
from foveate.synthetic.page import DoesNotFit, Page
from foveate.synthetic.sample import Character

WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def ink_box(image: Image.Image) -> tuple[int, int, int, int]:
    dark = np.asarray(image.convert("L")) < 255
    rows, columns = np.flatnonzero(dark.any(1)), np.flatnonzero(dark.any(0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


@pytest.mark.parametrize("cap", [7, 12.5, 28])
def test_centres_are_those_of_the_ink(cap):
    text = "Ag,j.7%Wq"
    for fonts in families_of("train")[:6]:
        face = fonts[0].face(cap)
        page = Page(Image.new("RGB", (1300, 100), WHITE))
        page.text(5.3, 60, text, face, BLACK, spacing=3 * cap)  # wide enough for no two characters to touch
        assert [c.char for c in page.characters] == list(text)
        for i, (char, x, y, middle) in enumerate(page.characters):
            alone = Image.new("RGB", page.image.size, WHITE)
            box = page.boxes[i]
            corner = tuple(int(v) for v in box)
            alone.paste(page.image.crop(corner), corner[:2])
            left, top, right, bottom = ink_box(alone)
            assert (left, top, right, bottom) == corner, char
            assert (x, y) == ((left + right) / 2, (top + bottom) / 2)
            assert middle == page.characters[0].middle
        # "A" has its ink's centre where the middle of the capitals is.
        assert page.characters[0].middle == pytest.approx(page.characters[0].y, abs=0.6)
        # Nothing was drawn outside the boxes.
        blank = page.image.copy()
        for box in page.boxes:
            blank.paste(WHITE, tuple(int(v) for v in box))
        assert np.asarray(blank).min() == 255


def test_text_is_as_wide_as_the_font_says():
    """Advances and kerning are the font's, unhinted: as Pillow measures them at a size where hinting is nothing."""
    text = "AVATAR Total 12.50"
    for fonts in families_of("train")[:6]:
        face = fonts[0].face(20)
        large = fonts[0].open(1000).getlength(text)
        assert face.width(text) == pytest.approx(large * face.size / 1000, rel=0.02)


def test_text_that_would_leave_the_image_is_refused():
    face = families_of("train")[0][0].face(10)
    page = Page(Image.new("RGB", (40, 40), WHITE))
    with pytest.raises(DoesNotFit):
        page.text(30, 20, "WWW", face, BLACK)


def test_characters_move_with_the_page():
    """A turned page: a dot stays under each character's new centre."""
    turned = 0
    for seed in range(30):
        rng = random.Random(seed)
        image = Image.new("RGB", (160, 120), WHITE)
        places = [(40, 30), (120, 30), (40, 90), (120, 90)]
        for x, y in places:
            image.paste(BLACK, (x - 2, y - 2, x + 3, y + 3))
        dots = [Character("o", x + 0.5, y + 0.5, y + 0.5) for x, y in places]
        changed, moved = degrade(rng, image, dots, 1.0, grey=False)
        turned += moved != dots
        dark = 255 - np.asarray(changed.convert("L")).astype(float)
        for _, x, y, middle in moved:
            assert middle == pytest.approx(y)
            left, top = round(x) - 8, round(y) - 8
            part = np.clip(dark[top : top + 17, left : left + 17] - 120, 0, None)
            rows, columns = np.indices(part.shape)
            assert (columns * part).sum() / part.sum() + left + 0.5 == pytest.approx(x, abs=0.8)
            assert (rows * part).sum() / part.sum() + top + 0.5 == pytest.approx(y, abs=0.8)
    assert turned > 3


@pytest.mark.parametrize("size", [(16, 16), (96, 32), (32, 200), (320, 320)])
@pytest.mark.parametrize("difficulty", [0, 1])
def test_text_page_answer_is_what_was_drawn(size, difficulty):
    for seed in range(5):
        sample = render_text_page(random.Random(seed), size, difficulty=difficulty)
        assert sample.image.size == size
        assert sample.answer.replace(" ", "") == "".join(c.char for c in sample.characters)
        if min(size) >= 32:
            assert sample.characters


def test_text_page_is_dense_and_reproducible():
    one, two = (render_text_page(random.Random(4), (256, 192), caps=(8, 12)) for _ in range(2))
    assert one.characters == two.characters
    np.testing.assert_array_equal(np.asarray(one.image), np.asarray(two.image))
    assert len(one.characters) > 60
