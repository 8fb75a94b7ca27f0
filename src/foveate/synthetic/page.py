"""A page to draw on, which records the position of every character."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, NamedTuple

from PIL import Image, ImageDraw

from foveate.synthetic.augmentation import Colour
from foveate.synthetic.fonts import Face, Font, families_of
from foveate.synthetic.sample import Character
from foveate.synthetic.words import Vocabulary


class DoesNotFit(Exception):  # noqa: N818 - a signal between renderers and `render`, not an error
    """Raised by a renderer if its random content does not fit; it is called again with less content."""


class Box(NamedTuple):
    """A rectangle in pixels of the image."""

    left: float
    top: float
    right: float
    bottom: float


class Drawn(NamedTuple):
    """What a renderer returns besides the page it drew on; `more`: further questions with their answers."""

    question: str
    answer: str
    meta: dict[str, Any]
    more: tuple[tuple[str, str], ...] = ()


def least_cap(difficulty: float) -> float:
    """Smallest height of capitals in pixels that pages of a difficulty from 0 to 1 are drawn with."""
    return 12 - 3 * difficulty


@dataclass
class RenderRequest:
    """What a renderer is asked for: everything random comes from `rng`.

    `attempt` counts how often this sample did not fit before; renderers draw less and shorter as it grows. `least`: no
    capitals are smaller, in pixels (None: what the difficulty allows). `most`: questions of one page.
    """

    rng: random.Random
    split: str
    width: int
    height: int
    difficulty: float
    attempt: int = 0
    least: float | None = None
    most: int = 3

    def __post_init__(self) -> None:
        self.words = Vocabulary(self.rng, self.split)

    @property
    def least_cap(self) -> float:
        """Smallest height of capitals in pixels."""
        return least_cap(self.difficulty) if self.least is None else self.least

    def floor(self, relaxed: float) -> float:
        """Height of capitals below which nothing is drawn: `least`, or where there is none what a renderer allows."""
        return relaxed if self.least is None else self.least

    def upto(self, easy: int, hard: int) -> int:
        """An upper end that grows with the difficulty, and shrinks with every attempt that did not fit."""
        return max(1, round(easy + (hard - easy) * self.difficulty) - self.attempt // 2)

    def font(self, kind: str | None = None) -> Font:
        """A font of this split, seldom a slanted one; `kind`: "mono" asks for fixed width where there is one."""
        families = families_of(self.split)
        for _ in range(60):
            font = self.rng.choice(self.rng.choice(families))
            if (font.slanted and self.rng.random() < 0.7) or (kind == "mono" and not font.mono):
                continue
            return font
        return families[0][0]


class Page:
    """An RGB image, its drawing pen, and the characters drawn so far."""

    def __init__(self, image: Image.Image, contrast: float = 200.0) -> None:
        self.image = image
        self.contrast = contrast  # difference of luminance of paper and ink, 0 to 255
        self.draw = ImageDraw.Draw(image)
        self.characters: list[Character] = []
        self.runs: list[str] = []  # texts, in the order in which they were drawn
        self.things: list[Character] = []  # shapes, named by their kinds
        self.boxes: list[Box] = []  # ink of each character, in the same order

    def text(self, x: float, baseline: float, text: str, face: Face, fill: Colour, spacing: float = 0.0) -> float:
        """Draw `text` from pen position `x` on `baseline`, both in pixels; returns the pen position after it.

        Raises DoesNotFit when ink would leave the image.
        """
        self.runs.append(text)
        y = round(baseline)
        width, height = self.image.size
        pens = face.pens(text, spacing)
        middle = y - face.font.cap_ratio * face.size / 2
        for char, pen in zip(text, pens, strict=False):
            if char == " ":
                continue
            pixel, half = divmod(int(2 * (x + pen) + 0.5), 2)
            matte, left, top, right, bottom = face.glyph(char, half)
            if matte is None:
                continue
            left, top, right, bottom = left + pixel, top + y, right + pixel, bottom + y
            if left < 0 or top < 0 or right > width or bottom > height:
                raise DoesNotFit(text)
            self.draw.bitmap((left, top), matte, fill)
            self.boxes.append(Box(left, top, right, bottom))
            self.characters.append(Character(char, (left + right) / 2, (top + bottom) / 2, middle))
        return x + pens[-1]

    def text_right(self, x: float, baseline: float, text: str, face: Face, fill: Colour) -> float:
        """Draw `text` so that its pen ends at `x`; returns where it began."""
        begin = x - face.width(text)
        self.text(begin, baseline, text, face, fill)
        return begin

    def text_centred(self, x: float, baseline: float, text: str, face: Face, fill: Colour) -> None:
        """Draw `text` with its middle at `x`."""
        self.text(x - face.width(text) / 2, baseline, text, face, fill)
