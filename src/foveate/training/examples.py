"""A training example: images and a conversation in LLaVA's format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from PIL import Image

from foveate.training.dense_labels import Character

PLACEHOLDER = "<image>"
#: Speakers in LLaVA's files, as roles of a chat template.
ROLES = {"system": "system", "human": "user", "gpt": "assistant"}

# `from` is a keyword, hence the functional form.
Turn = TypedDict("Turn", {"from": str, "value": str})


@dataclass
class Example:
    """An example: one row of a batch.

    Attributes:
        images: Images, or paths to them, in the order of the placeholders.
        conversations: Turns of `human` and `gpt`, with one `<image>` for every image.
        characters: For every image its characters and their positions, or None if unknown.
        task: Name for reports.
        things: For every image other drawn things and their positions (`foveate.synthetic.Sample.things`), or None.
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
        """Build an example of one image and one question with its answer; `more` are further turns."""
        turns: list[Turn] = [
            {"from": "human", "value": f"{PLACEHOLDER}\n{question}"},
            {"from": "gpt", "value": answer},
        ]
        for next_question, next_answer in more:
            turns += [{"from": "human", "value": next_question}, {"from": "gpt", "value": next_answer}]
        return cls([image], turns, None if characters is None else [characters], task, [things])
