"""What the page does for one visitor, apart from its layout: read the image, answer, draw, say what is wrong."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from foveate.answering import Answer, ask
from foveate.answering.conversations import inputs_of
from foveate.answering.pooling import pooling_of
from foveate.app import cards
from foveate.app.comparison import Answerer, Contender
from foveate.app.views import View, views
from foveate.core.errors import FoveateError
from foveate.core.plan import Plan
from foveate.images import open_image

log = logging.getLogger("foveate.app")

#: Most pixels of an uploaded image.
MOST_PIXELS = 50_000_000


@dataclass(frozen=True)
class Shown:
    """Pictures of the last question of a session.

    Attributes:
        views: the pictures, in the order of the model's stages.
    """

    views: list[View]

    def at(self, stage: int | None) -> View:
        """Return the picture of a stage, by default the last."""
        return self.views[-1 if stage is None or stage >= len(self.views) else stage]

    @property
    def kept(self) -> frozenset[int] | None:
        """The tokens that the plan reads, merged ones at their position; None without a plan."""
        document = self.views[-1].document
        if document is None:
            return None
        return frozenset([*document["kept"], *(group["at"] for group in document["merged"])])


@dataclass
class Session:
    """What a visitor asks about, in which a question that takes long finds whether its answer is still wanted.

    Attributes:
        image: file of the image that is asked about.
    """

    image: str | None = None


def opened(path: str | None) -> Image.Image:
    """Open an uploaded image.

    Raises:
        FoveateError: there is none, or it is not one that foveate reads.
    """
    if path is None:
        raise FoveateError("there is no image yet: upload one, or take an example.")
    try:
        return open_image(path, max_pixels=MOST_PIXELS)
    except FoveateError as error:  # visitors know the file by its name, not by its place on the server
        raise FoveateError(str(error).replace(repr(path), repr(Path(path).name))) from None


def answerer(model: tuple[Any, Any], image: Image.Image, question: str, max_new_tokens: int) -> Answerer:
    """Return a function that answers a question with a plan, and does nothing else."""

    def answer(plan: Plan | None) -> Answer:
        return ask(image, question, model, plan, max_new_tokens=max_new_tokens)

    return answer


def pictured(model: tuple[Any, Any], image: Image.Image, question: str, compared: Sequence[Contender]) -> Shown:
    """Draw the stages of the full model and the tokens of the plan, with maps from an encoder pass of their own."""
    full_model = compared[0].answer
    assert full_model is not None
    if full_model.processed_size is not None:
        with torch.inference_mode():
            full_model = replace(full_model, pooling=pooling_of(model[0], inputs_of(*model, image, question)))
    return Shown(views(full_model, compared[1].answer if len(compared) > 1 else None, image))


def labels(examples: Sequence[tuple[str, str]]) -> list[str]:
    """Return what examples are called: their questions, with the file where several share one."""
    questions = [question for _, question in examples]
    return [
        question if questions.count(question) == 1 else f"{Path(path).name}: {question}" for path, question in examples
    ]


def notice_of(error: Exception) -> str:
    """Render an error as one sentence; what is not the visitor's to solve is logged."""
    if not isinstance(error, FoveateError):
        log.error("a question failed", exc_info=error)
        error = FoveateError(f"foveate failed: {type(error).__name__}. See the terminal of the server for details.")
    return cards.notice(error)
