"""Example questions that the page offers, from `examples.json`: the only list of them, which tests check."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from foveate.core.text_files import read_json

#: The list.
TABLE = Path(__file__).with_name("examples.json")


@dataclass(frozen=True)
class Example:
    """A question with its answer.

    Attributes:
        image: file name in the folder `examples` of the source tree.
        question: what is asked.
        answer: what a right answer contains.
    """

    image: str
    question: str
    answer: str


def examples() -> list[Example]:
    """Read the examples, in the order in which they are offered."""
    return [Example(**row) for row in read_json(TABLE)]
