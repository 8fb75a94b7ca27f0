"""The picture of an answer shows what the answer says, for any shape of image and any text."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from foveate.answering import Answer, Pooling, Stage, Tokens, ask
from foveate.loading import load
from foveate.visualization.answer import draw_answer
from foveate.visualization.canvas import GAP, MARGIN, WIDTH
from tests.tiny_model import noise, save_llava, save_llava_uhd


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return load(save_llava_uhd(tmp_path_factory.mktemp("model")))


def answer(effect: np.ndarray | None = None) -> Answer:
    """An answer about an image of 64 x 64 pixels, with one stage from 8 x 8 to 4 x 4 tokens."""
    return Answer(
        text="42",
        question="How many?",
        model="embedded",
        image_sizes=[(64, 64)],
        processed_size=(64, 64),
        stages=[Stage("patches", (8, 8), 64, (8, 8), "patches"), Stage("stage 1", (4, 4), 16, (16, 16), "merged")],
        tokens=Tokens(read=16, full=16, unmerged=64, text=9, generated=2),
        times={"preprocess": 0.01, "encoder": 0.02, "connector": 0.001, "prefill": 0.03, "decode": 0.04, "total": 0.11},
        device="cpu",
        pooling=[] if effect is None else [Pooling("stage 1", np.full((8, 8), 0.25), effect, 0.1)],
    )


def stage_panel(picture: Image.Image) -> np.ndarray:
    """The pixels of the second of two square panels: the last rectangle with a frame around it."""
    pixels = np.asarray(picture, np.int16)
    left = MARGIN + (WIDTH - 2 * MARGIN - GAP) // 2 + GAP
    frame = np.all(pixels[:, left - 1] == (222, 226, 230), axis=1)
    rows = np.flatnonzero(frame)
    top, bottom = rows[0] + 1, rows[-1]
    return pixels[top:bottom, left : left + (bottom - top)]


def test_tokens_with_a_strong_effect_are_orange():
    effect = np.full((8, 8), 0.1, np.float32)
    effect[0, :2] = 0.4
    effect[7, 7] = 0.25
    panel = stage_panel(draw_answer(answer(effect), Image.new("RGB", (64, 64), "white")))
    side = len(panel) / 8

    def orange(row: int, column: int) -> int:
        red, _, blue = panel[round(side * (row + 0.5)), round(side * (column + 0.5))]
        return int(red - blue)

    assert orange(0, 0) > 150
    assert orange(0, 1) > 150
    assert 50 < orange(7, 7) < 130
    assert orange(4, 4) == orange(1, 0) == 0


def test_windows_are_outlined():
    panel = stage_panel(draw_answer(answer(), Image.new("RGB", (64, 64), "white")))
    dark = np.flatnonzero(panel[len(panel) // 16].sum(axis=1) < 3 * 240)
    lines = np.round(dark / len(panel) * 4).astype(int)
    assert set(lines) == {1, 2, 3}


def test_the_image_itself_is_shown():
    picture = draw_answer(answer(), Image.new("RGB", (64, 64), (10, 200, 30)))
    colours = {colour: count for count, colour in picture.getcolors(2**24)}
    assert colours[(10, 200, 30)] > 200 * 200


def test_the_picture_follows_the_numbers():
    image = noise(64, 64)
    first = draw_answer(answer(), image)
    assert first.width == WIDTH and first.mode == "RGB"
    assert first.tobytes() == draw_answer(answer(), image).tobytes()
    changed = [
        replace(answer(), text="43"),
        replace(answer(), times={**answer().times, "decode": 0.4}),
        replace(answer(), tokens=replace(answer().tokens, read=15)),
    ]
    for other in changed:
        assert draw_answer(other, image).tobytes() != first.tobytes()


def test_a_real_answer(pair):
    image = noise(60, 50)
    real = ask(image, "What is it?", pair, max_new_tokens=3, keep_pooling=True)
    picture = draw_answer(real, image)
    plain = draw_answer(replace(real, pooling=[]), image)
    assert picture.width == WIDTH
    assert picture.height == plain.height + 60 + GAP  # the legend of the tints


def test_a_model_without_stages(tmp_path):
    image = noise(50, 40)
    real = ask(image, "What is it?", load(save_llava(tmp_path)), max_new_tokens=3)
    assert draw_answer(real, image).width == WIDTH


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (2000, 1500)])
def test_any_shape_of_image(pair, size):
    image = Image.new("RGB", size, "red")
    picture = draw_answer(ask(image, "?", pair, max_new_tokens=1, keep_pooling=True), image)
    assert picture.height < 2000


@pytest.mark.parametrize("text", ["", "word " * 2000, "x" * 5000, "\x1b[31m\u202e \ufffd 数字", "a\n\n\nb"])
def test_any_text(text):
    picture = draw_answer(replace(answer(), text=text, question=text or "?", model="m" * 300), noise(64, 64))
    assert picture.height < 1700
