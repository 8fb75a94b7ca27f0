"""The height of text is estimated from pixels alone."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from foveate.answering.text_size import text_height
from foveate.synthetic import render


def page(
    size: float, ink: str, paper: str, text: str = "Total 34.55\nRECEIPT 4071\nCash 20.00"
) -> tuple[Image.Image, float]:
    """A drawn page, and the height of its capitals."""
    font = ImageFont.load_default(size)
    image = Image.new("RGB", (240, 200), paper)
    ImageDraw.Draw(image).multiline_text((12, 12), text, fill=ink, font=font)
    top, bottom = font.getbbox("H")[1::2]
    return image, bottom - top


@pytest.mark.parametrize("size", [9, 12, 16, 24, 36])
@pytest.mark.parametrize(("ink", "paper"), [("black", "white"), ("white", "navy"), ("#555", "#fc8")])
def test_the_height_is_that_of_capitals_and_digits(size, ink, paper):
    image, height = page(size, ink, paper)
    assert text_height(image) == pytest.approx(height, abs=max(1, 0.1 * height))


def test_an_image_that_is_made_smaller_has_smaller_text():
    image, height = page(32, "black", "white")
    half = image.resize((120, 100), Image.Resampling.LANCZOS)
    assert text_height(half) == pytest.approx(height / 2, abs=1.5)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_any_mode(mode):
    image, height = page(24, "black", "white")
    assert text_height(image.convert(mode)) == pytest.approx(height, abs=2)


def test_what_has_no_text_has_no_height():
    assert text_height(Image.new("RGB", (64, 64), "white")) is None
    assert text_height(Image.new("L", (1, 1))) is None
    shape = Image.new("RGB", (200, 200), "white")
    ImageDraw.Draw(shape).ellipse((20, 20, 180, 180), fill="red")
    assert text_height(shape) is None
    ramp = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (256, 1)))
    assert text_height(ramp) is None


def test_rendered_pages_of_large_and_of_small_type_are_told_apart():
    for seed, task in enumerate(("snippet", "read_field", "table_cell", "receipt_total")):
        image = render(task, seed, "heldout", sides=(300, 480), difficulty=0.5, least=12).image
        assert text_height(image) >= 11
        assert text_height(image.reduce(3)) is None or text_height(image.reduce(3)) < 10
