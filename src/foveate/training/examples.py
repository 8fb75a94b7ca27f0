"""One training example: images and a conversation in LLaVA's format, whatever source it came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from PIL import Image

from foveate.training.dense_labels import Character

PLACEHOLDER = "<image>"
#: Who speaks in LLaVA's files, as roles of a chat template.
ROLES = {"system": "system", "human": "user", "gpt": "assistant"}

# `from` is a keyword, hence the functional form.
Turn = TypedDict("Turn", {"from": str, "value": str})


@dataclass
class Example:
    """What one row of a batch is made from.

    Attributes:
        images: Pictures, or paths to them, in the order of the placeholders.
        conversations: Turns of `human` and `gpt`, with one `<image>` for every picture.
        characters: For every picture what is written where, or None where that is not known.
        task: Name for reports.
        things: For every picture what else was drawn where (`data.Sample.things`), or None where that is not known.
    """

    images: list[Image.Image | Path]
    conversations: list[Turn]
    characters: list[Sequence[Character]] | None = None
    task: str = ""
    things: list[Sequence[Character]] | None = None

    @classmethod
    def of_question(
        cls,
        image: Image.Image | Path,
        question: str,
        answer: str,
        characters: Sequence[Character] | None = None,
        task: str = "",
        more: Sequence[tuple[str, str]] = (),
        things: Sequence[Character] = (),
    ) -> Example:
        """One picture, one question with its answer, and those of `more` as further turns."""
        turns: list[Turn] = [
            {"from": "human", "value": f"{PLACEHOLDER}\n{question}"},
            {"from": "gpt", "value": answer},
        ]
        for next_question, next_answer in more:
            turns += [{"from": "human", "value": next_question}, {"from": "gpt", "value": next_answer}]
        return cls([image], turns, None if characters is None else [characters], task, [things])
