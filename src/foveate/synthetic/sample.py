"""Rendered samples: an image, a question and the drawn characters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from PIL import Image


class Character(NamedTuple):
    """One drawn character.

    `x` and `y` are the centre of its ink in pixels of the image, measured from the left and top edge of the
    image (the centre of the pixel in the top left corner is 0.5, 0.5). `middle` is where the middle of the capitals
    of its line is at this x: the same for all characters of a level line, where full stops and capitals differ in y.
    """

    char: str
    x: float
    y: float
    middle: float | None = None


def height_of(character: Any) -> float:
    """Pixels from the top edge to the middle of a character's line, or to its own centre if the line is unknown."""
    middle = getattr(character, "middle", None)
    return character.y if middle is None else middle


@dataclass(slots=True)
class Sample:
    """A rendered image with one question that has one exact short answer.

    Attributes:
        image: RGB.
        question: a question (or request) in plain words.
        answer: printable ASCII.
        task: a name of `TASKS`.
        characters: every character drawn anywhere in the image, in drawing order, spaces left out; dense
            supervision that costs nothing.
        meta: split, seed, difficulty, template, and what the task wants to be known of the picture.
        things: shapes that were drawn, each with its kind in place of a character.
        more: further questions about the same picture with their answers, none of which gives away `answer`;
            encoding a picture costs more than asking again.
        runs: the texts drawn on the page, in drawing order.
    """

    image: Image.Image
    question: str
    answer: str
    task: str
    characters: list[Character]
    meta: dict[str, Any] = field(default_factory=dict)
    more: list[tuple[str, str]] = field(default_factory=list)
    things: list[Character] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
