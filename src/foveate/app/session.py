"""What the page does for one visitor, apart from its layout: read the image, answer, draw, say what is wrong."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from foveate.answering import Answer, ask
from foveate.answering.conversations import inputs_of, inputs_of_batch, messages_of
from foveate.answering.pooling import pooling_of
from foveate.app import cards
from foveate.app.comparison import Answerer, Contender
from foveate.app.views import View, clip_views, views
from foveate.clips import ClipLimits, VideoFile, clip_of_frames, open_clip
from foveate.core.errors import FoveateError
from foveate.core.plan import Plan
from foveate.images import open_image

log = logging.getLogger("foveate.app")

#: Most pixels of an uploaded image, and of a frame of a clip; longest clip in seconds.
MOST_PIXELS, LONGEST_CLIP = 50_000_000, 600.0


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
        file: file of the image or the clip that is asked about.
    """

    file: str | None = None


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


def opened_clip(path: str | None) -> VideoFile:
    """Read an uploaded clip; its frames are decoded when a question chooses them.

    Raises:
        FoveateError: there is none, it is no clip that foveate reads, or it is longer than `LONGEST_CLIP`.
    """
    if path is None:
        raise FoveateError("there is no clip yet: upload one, or take the example.")
    data = VideoFile(Path(path).read_bytes())
    open_clip(data, times=[0.0], limits=ClipLimits(frame_pixels=MOST_PIXELS, seconds=LONGEST_CLIP))
    return data


def reads_clips(model: tuple[Any, Any]) -> bool:
    """Whether a model reads clips, and what that needs is installed."""
    if any(importlib.util.find_spec(name) is None for name in ("av", "torchvision")):
        return False
    clip = clip_of_frames([*np.zeros((2, 224, 224, 3), np.uint8)])
    try:
        inputs_of_batch(*model, [messages_of([clip], "?")])
    except FoveateError:  # the model has no video, or its chat template leaves clips out
        return False
    return True


def answerer(model: tuple[Any, Any], visual: Image.Image | VideoFile, question: str, max_new_tokens: int) -> Answerer:
    """Return a function that answers a question about an image or a clip with a plan, and does nothing else."""

    def answer(plan: Plan | None) -> Answer:
        return ask(visual, question, model, plan, max_new_tokens=max_new_tokens)

    return answer


def pictured(
    model: tuple[Any, Any], visual: Image.Image | VideoFile, question: str, compared: Sequence[Contender]
) -> Shown:
    """Draw the stages of the full model and the tokens of the plan, with maps from an encoder pass of their own.

    Of a clip: the frames that the full model reads, and those that the plan reads with their tokens.
    """
    full_model = compared[0].answer
    planned = compared[1].answer if len(compared) > 1 else None
    assert full_model is not None
    if isinstance(visual, VideoFile):
        return Shown(clip_views(full_model, planned, visual))
    if full_model.processed_size is not None:
        with torch.inference_mode():
            full_model = replace(full_model, pooling=pooling_of(model[0], inputs_of(*model, visual, question)))
    return Shown(views(full_model, planned, visual))


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
