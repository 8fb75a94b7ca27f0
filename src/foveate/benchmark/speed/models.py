"""Models under measurement, with their inputs and closed-form cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from foveate.benchmark.encoders import DTYPES
from foveate.benchmark.nbytes import dtype_of
from foveate.benchmark.speed.settings import BUDGETS, SpeedSettings
from foveate.benchmark.speed.shapes import SHAPES, TEXTS, Shape
from foveate.core.errors import FoveateError
from foveate.core.method import Site
from foveate.core.plan import Plan
from foveate.training.precision import bfloat16_pays


@dataclass
class MeasuredModel:
    """A model and one question about one image or clip.

    Args:
        name: Name of the model.
        model: Model on its device, in evaluation mode.
        budgets: Default budgets of the measurement.
        preprocess: Makes the model's inputs for a batch of equal prompts; timed as "preprocess".
        size: (width, height) of the image in pixels; None: it is a clip, for which there is no formula.
        images: The image processor, for the closed formula; None: released settings.
    """

    name: str
    model: Any
    budgets: tuple[str, ...]
    preprocess: Callable[[int], dict[str, Any]]
    size: tuple[int, int] | None
    images: Any = None

    @property
    def dtype(self) -> str:
        """Name of the dtype of the weights."""
        return dtype_of(self.model)

    def formula(self, plan: Plan | None, tokens: int, text: int) -> int | None:
        """Closed-form FLOPs to the first token of one prompt; None if the model has no formula.

        Args:
            plan: None is the full model.
            tokens: Visual tokens that the language model read.
            text: All other tokens of the prompt.
        """
        from foveate import cost

        if self.size is None:
            return None
        try:
            shape = cost.shape_of(self.model.config)
            processed = cost.processed_image(self.model.config, *self.size, self.images)
            before = plan is not None and all(step.method.site is Site.PRE_LLM for step in plan.steps)
            run = cost.follow(None if before else plan, shape, processed)
            if before:  # how many stay is known by now, also of methods whose own rule decides
                run = cost.Run(run.image, run.merges, (tokens,) * shape.text.layers)
            return cost.cost(shape, run, text).total if shape.vision is not None else None
        except FoveateError:
            return None


def subject(name: str, settings: SpeedSettings, frames: int | None = None) -> MeasuredModel:
    """Load the model of that name, with a clip of `frames` or an image.

    Raises:
        FoveateError: it cannot be loaded, or cannot run with that attention.
    """
    made = _shape(SHAPES[name], settings, frames) if name in SHAPES else _loaded(name, settings)
    attend(made.model, settings.attention)
    return made


def attend(model: Any, attention: str) -> None:
    """Set the attention implementation of a model.

    Raises:
        FoveateError: it is not installed, or not for this model.
    """
    try:
        model.set_attn_implementation(attention)
    except (ImportError, ValueError) as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise FoveateError(f"attention {attention!r} is not available here; use sdpa or eager: {reason}.") from error


def _shape(shape: Shape, settings: SpeedSettings, frames: int | None) -> MeasuredModel:
    device = torch.device(settings.device)
    automatic = "bfloat16" if bfloat16_pays(device.type) else "float32"
    dtype = DTYPES[automatic if settings.dtype == "auto" else settings.dtype]
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.random.fork_rng(devices=[]), device:
            torch.manual_seed(0)
            model: Any = shape.build(TEXTS[settings.text], settings.encoder_blocks).eval()
    finally:
        torch.set_default_dtype(before)
    picture, clip = shape.picture(), None if frames is None else shape.frames(frames)

    def preprocess(batch: int) -> dict[str, Any]:
        if clip is None:
            inputs = shape.inputs(picture, settings.text_tokens, batch)
        else:
            inputs = shape.clip_inputs(clip, settings.text_tokens, batch)
        return {
            name: value.to(device, dtype) if value.is_floating_point() else value.to(device)
            for name, value in inputs.items()
        }

    blocks = settings.encoder_blocks
    name = shape.name if blocks is None else f"{shape.name} with {blocks} encoder block{'s' if blocks > 1 else ''}"
    if clip is not None:
        return MeasuredModel(f"{name}, {frames} frames", model, shape.budgets, preprocess, None)
    return MeasuredModel(name, model, shape.budgets, preprocess, picture.size)


def _loaded(name: str, settings: SpeedSettings) -> MeasuredModel:
    from foveate.answering.conversations import check_length, inputs_of_batch
    from foveate.images import open_image
    from foveate.loading import load

    source_name = None if name == "embedded" else name
    model, processor = load(source_name, dtype=settings.dtype, device=settings.device, plan=None)
    picture = _receipt() if settings.image is None else open_image(settings.image)
    source = picture if settings.image is None else settings.image

    def preprocess(batch: int) -> dict[str, Any]:
        # Opening a file is part of the time until an answer begins.
        opened = source if isinstance(source, Image.Image) else open_image(source)
        content = [{"type": "image", "image": opened}, {"type": "text", "text": settings.question}]
        return inputs_of_batch(model, processor, [[{"role": "user", "content": content}]] * batch)

    check_length(model, preprocess(1)["input_ids"].shape[1], settings.new_tokens)
    shown = name if source_name is None or not Path(name).is_dir() else Path(name).name
    return MeasuredModel(shown, model, BUDGETS, preprocess, picture.size, getattr(processor, "image_processor", None))


def _receipt() -> Image.Image:
    from foveate.synthetic import render

    return render("receipt_total", 0, split="heldout", size=(448, 448)).image
