"""A model that says what it was trained on warns about images that differ from it."""

import pytest
from PIL import Image, ImageDraw, ImageFont

from foveate import ask
from foveate.answering.limits import beyond_training
from foveate.models.llava_uhd.image_processing import LlavaUHDImageProcessor
from foveate.synthetic import render

LIMITS = {"trained_size": 300, "trained_text_height": 12, "scale_resolution": 640, "max_edge": 640}


@pytest.fixture
def limited(pair, monkeypatch):
    """The small model, whose processor says what it was trained on and keeps sizes."""
    for name, value in LIMITS.items():
        monkeypatch.setattr(pair[1].image_processor, name, value)
    return pair


def lines(size: float, width: int = 260) -> Image.Image:
    image = Image.new("RGB", (width, 120), "white")
    text = "Total 34.55\nRECEIPT 4071\nCash 20.00"
    ImageDraw.Draw(image).multiline_text((8, 8), text, fill="black", font=ImageFont.load_default(size))
    return image


class Reading:
    """A processor that gives every image half of its size."""

    class Images:
        trained_size, trained_text_height = 560, 12.0

        def target_size(self, width: int, height: int) -> tuple[int, int]:
            return width // 2, height // 2

    image_processor = Images()


def test_what_is_like_the_training_data_has_no_warning(limited):
    large = lines(24)
    assert beyond_training(limited[1], large) == [] == ask(large, "?", limited, max_new_tokens=1).warnings
    assert beyond_training(limited[1], Image.new("RGB", (64, 64), "white")) == []


def test_a_large_image_and_small_text_are_named_with_what_to_do(limited):
    (warning,) = beyond_training(limited[1], lines(24, width=310))
    assert warning.startswith("the image is 310 x 120 px") and "up to 300 px" in warning and "crop" in warning
    (warning,) = beyond_training(limited[1], lines(11))
    assert "at least 12 px" in warning and "enlarge" in warning
    answer = ask([lines(24, width=310), lines(11)], "?", limited, max_new_tokens=1)
    assert len(answer.warnings) == 2 and answer.to_dict()["warnings"] == answer.warnings


def test_text_counts_at_the_size_at_which_it_is_read():
    assert beyond_training(Reading(), lines(24)) != []
    assert beyond_training(Reading(), lines(44)) == []


def test_models_that_do_not_say_what_they_were_trained_on_warn_of_nothing(pair):
    assert beyond_training(pair[1], lines(8, width=640)) == []


def test_the_limits_are_saved_with_the_processor(tmp_path):
    LlavaUHDImageProcessor(trained_size=560, trained_text_height=12).save_pretrained(tmp_path)
    loaded = LlavaUHDImageProcessor.from_pretrained(tmp_path)
    assert (loaded.trained_size, loaded.trained_text_height) == (560, 12)


def test_pages_inside_the_limits_rarely_warn_and_reduced_ones_mostly_do():
    inside = outside = 0
    for seed in range(12):
        task = ("snippet", "read_field", "table_cell", "receipt_total")[seed % 4]
        image = render(task, 40 + seed, "heldout", sides=(300, 480), difficulty=0.6, least=12).image
        small = image.resize((image.width // 3, image.height // 3), Image.Resampling.LANCZOS)
        inside += bool(beyond_training(Unchanged(), image))
        outside += bool(beyond_training(Unchanged(), small))
    assert inside == 0 and outside >= 9


class Unchanged(Reading):
    """A processor that keeps sizes."""

    class Images(Reading.Images):
        def target_size(self, width: int, height: int) -> tuple[int, int]:
            return width, height

    image_processor = Images()
