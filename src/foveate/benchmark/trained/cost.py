"""Cost of trained models: FLOPs to the first token and of a training step, and time to the first token."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any, TypeVar

import torch

from foveate.answering.conversations import inputs_of_batch
from foveate.benchmark import profiling
from foveate.cost import flops
from foveate.models.llava_video import FoveateLlavaVideoProcessor
from foveate.runtime import compress
from foveate.synthetic import render
from foveate.synthetic.clips import render_clip
from foveate.training.architectures import architecture_of
from foveate.training.architectures.llava_video import LlavaVideo
from foveate.training.batch_stream import BatchStream
from foveate.training.building import build_model, vision_tower_of
from foveate.training.clip_source import clip_of
from foveate.training.collate import Collator
from foveate.training.lengths import lengths_of
from foveate.training.losses import counts_of, weighted
from foveate.training.recipe import Losses, Recipe
from foveate.training.sources import open_source
from foveate.training.training_model import TrainingModel

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Prompted:
    """A model with the inputs of one question about one image or clip, under a plan or none."""

    model: Any
    inputs: Any
    plan: str | None = None

    @classmethod
    def of(cls, model: Any, processor: Any, plan: str | None = None) -> Prompted:
        """Prepare the question that all models are measured with."""
        if isinstance(processor, FoveateLlavaVideoProcessor):
            moving = render_clip("clip_moving", 0, "heldout", (112, 112), seconds=4, fps=2, difficulty=0.0)
            content = [{"type": "video", "video": clip_of(moving)}, {"type": "text", "text": "Which shape moves?"}]
        else:
            sample = render("read_word", 0, split="heldout", size=(128, 96), difficulty=0.0)
            content = [{"type": "image", "image": sample.image}, {"type": "text", "text": "Which word is this?"}]
        # The FLOP counter of torch fails where a module gets a parameter that requires gradients as its input.
        model = model.eval().requires_grad_(False)
        return cls(model, inputs_of_batch(model, processor, [[{"role": "user", "content": content}]]), plan)

    def attached(self) -> AbstractContextManager[Any]:
        """The context in which the plan is attached."""
        return nullcontext() if self.plan is None else compress(self.model, self.plan)

    @torch.inference_mode()
    def first_token(self) -> int:
        """Encode the image or the clip, read the prompt, and choose one token.

        Connectors that may leave placeholders empty give a prompt whose cache no later call could use.
        """
        cached = getattr(self.model.model.multi_modal_projector, "static_count", True)
        return int(self.model(**self.inputs, use_cache=cached, logits_to_keep=1).logits[0, -1].argmax())


def first_token_flops(prompted: Prompted) -> dict[str, int]:
    """FLOPs of the encoder, the connector and the language model to the first token, counted while it runs.

    Of a video connector, which models call by `encode`, those of its layers.
    """
    architecture = architecture_of(prompted.model)
    with prompted.attached():
        total, by_module = flops.count_modules(prompted.first_token)
    connector_name = str(architecture.connector)
    if isinstance(architecture, LlavaVideo):
        layers = dict(prompted.model.model.multi_modal_projector.named_children())
        names = [f"{connector_name}{layer}." for layer in layers]
    else:
        names = [connector_name]
    tower, connector = (
        sum(count for name, count in by_module.items() if f"{name}.".endswith(suffixes))
        for suffixes in ((architecture.tower,), tuple(names))
    )
    return {"encoder": tower, "connector": connector, "prefill": total - tower - connector}


def first_token_seconds(prompts: Mapping[Key, Prompted], turns: int) -> dict[Key, dict[str, Any]]:
    """Time to the first token of models that take turns, so that a machine that slows down slows them all.

    Args:
        prompts: By any key.
        turns: Timed turns after one warm-up.

    Returns:
        `profiling.spread` of the seconds, by key.
    """
    times: dict[Key, list[float]] = {key: [] for key in prompts}
    for turn in range(turns + 1):
        for key, prompted in profiling.in_turn(prompts.items(), turn):
            with prompted.attached():
                start = profiling.clock(prompted.model.device)
                prompted.first_token()
                times[key].append(profiling.clock(prompted.model.device) - start)
    return {key: profiling.spread(seconds[1:]) for key, seconds in times.items()}


def training_flops(recipe: Recipe) -> int:
    """FLOPs of the training of a recipe with one stage: those of its first batch, forward and backward, times steps.

    Where batches are trained at lengths of a nested connector, of which each is as likely, the mean over the lengths.
    """
    model, processor = build_model(recipe.model, recipe.seed)
    stage = recipe.stages[0]
    training_model = TrainingModel(model, recipe.seed)
    for name, parameter in training_model.named_parameters():
        parameter.requires_grad_(training_model.part_of(name) in stage.train)
    unit = training_model.architecture.unit(model.config)
    sources = [(open_source(data, unit, recipe.seed), data.weight) for data in stage.data]
    nested = lengths_of(stage, processor) == "sampled"
    batch = next(iter(BatchStream(stage, sources, Collator(processor, lengths=nested), seed=recipe.seed * 1000)))
    lengths = [{"lengths": length[None]} for length in batch.pop("lengths")] if nested else [{}]
    teacher = None if stage.teacher is None else vision_tower_of(stage.teacher)
    with training_model.taught_by(teacher):
        counts = [flops.count(partial(_backward, training_model, batch | length, stage.loss)) for length in lengths]
    return round(fmean(counts)) * stage.steps * stage.accumulate


def _backward(training_model: TrainingModel, batch: dict[str, torch.Tensor], losses: Losses) -> None:
    weighted(training_model(**batch), counts_of(batch, losses), losses).backward()
