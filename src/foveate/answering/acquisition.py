"""Conversations in which a model may ask for more of an image: the messages of both turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from PIL import Image

from foveate.core.acquisition import AcquisitionMethod, Prompts, ToolCall
from foveate.core.errors import FoveateError
from foveate.core.plan import Plan

Messages = list[dict[str, Any]]


def split_acquisition(plan: Plan | None, location: str = "") -> tuple[AcquisitionMethod | None, Plan | None]:
    """Divide a plan into an acquisition, if it begins with one, and the steps that follow.

    Args:
        plan: Of a request.
        location: Folder or Hub id of the model, next to which its prompts are.

    Raises:
        FoveateError: an acquisition is not the first step.
    """
    if plan is None:
        return None, None
    first, *others = plan.steps
    if misplaced := [step for step in others if isinstance(step.method, AcquisitionMethod)]:
        raise FoveateError(
            f"{misplaced[0]} decides what the model reads first: it must come first in a plan, and once."
        )
    if not isinstance(first.method, AcquisitionMethod):
        return None, plan
    return first.method.resolve_weights(location), replace(plan, steps=tuple(others)) if others else None


def reduced(method: AcquisitionMethod, image: Image.Image) -> Image.Image:
    """The image of the first turn, resized with Lanczos' filter, as the authors do."""
    return image.convert("RGB").resize(method.reduced_size(image.size), Image.Resampling.LANCZOS)


def region(image: Image.Image, call: ToolCall) -> Image.Image:
    """What the tool returns of the original image."""
    return image if call.box == (0, 0, *image.size) else image.crop(call.box)


def first_messages(
    method: AcquisitionMethod, prompts: Prompts, image: Image.Image, question: str, system: str | None = None
) -> Messages:
    """Messages of the first turn: the system prompt, the reduced image and the question.

    Args:
        method: The acquisition.
        prompts: Of the model.
        image: The original image.
        question: The user's question.
        system: System prompt of the user, which comes before that of the acquisition.
    """
    texts = [text for text in (system, prompts.system) if text]
    head = [{"role": "system", "content": [_text("\n\n".join(texts))]}] if texts else []
    content = [{"type": "image", "image": reduced(method, image)}, _text(prompts.asked(question))]
    return [*head, {"role": "user", "content": content}]


def second_messages(prompts: Prompts, first: Messages, written: str, image: Image.Image) -> Messages:
    """Messages of the second turn.

    Args:
        prompts: Of the model.
        first: Messages of the first turn.
        written: What the model wrote in it.
        image: What the tool returned.
    """
    before, after = prompts.around_second()
    parts = [_text(before), {"type": "image", "image": image}, _text(after)]
    content = [part for part in parts if part["type"] == "image" or part["text"]]
    return [*first, {"role": "assistant", "content": [_text(written)]}, {"role": "user", "content": content}]


def only_image(images: Sequence[Any]) -> Image.Image:
    """The image of a question.

    Raises:
        FoveateError: there are several, none, or a clip.
    """
    if len(images) != 1 or not isinstance(images[0], Image.Image):
        raise FoveateError("a model that asks for more of an image is asked about one image: give one, and no clip.")
    return images[0]


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}
