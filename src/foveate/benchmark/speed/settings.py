"""Settings of the speed benchmark."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from foveate.benchmark.budgets import CONTROLS
from foveate.benchmark.encoders import DTYPES
from foveate.benchmark.speed.shapes import SHAPES, TEXTS
from foveate.core.errors import FoveateError
from foveate.core.plan import Plan
from foveate.core.registry import model_methods

#: Budgets of models that are no shapes.
BUDGETS = ("10%", "25%", "50%")


@dataclass(frozen=True)
class SpeedSettings:
    """Settings of the speed benchmark. On resuming, models, encoder blocks, plans and batches may differ.

    Args:
        models: Names of `SHAPES`, folders, Hub ids, or "embedded".
        methods: Names of methods, each run at every budget; all that need no weights of their own where no plans are
            given either; of clips those for clips.
        budgets: In place of the models' own.
        frames: Numbers of frames of clips, which are measured in place of images.
        plans: Plans as text, in addition to the methods.
        batches: How many prompts are answered at once.
        repeats: Timed turns after a warm-up.
        new_tokens: Tokens that are generated in a turn; decoding is timed from the second one on.
        text_tokens: Tokens of text after the image of a shape.
        device: "cpu" or "cuda".
        dtype: "auto", "float32", "bfloat16" or "float16"; "auto" is bfloat16 for shapes where the device has it,
            otherwise float32, and what `foveate.load` makes of other models.
        attention: `attn_implementation` of all models.
        threads: Threads of the CPU.
        text: Text part of the shapes.
        encoder_blocks: Of the encoder of shapes; None: as many as released. The fewer there are, the less of the time
            to the first token is the encoder's, and the more the cost of selection shows in the efficiency.
        image: Picture for models that are no shapes; None: a rendered receipt.
        question: What they are asked.

    Raises:
        FoveateError: If something is not known or not possible.
    """

    models: tuple[str, ...] = tuple(SHAPES)
    methods: tuple[str, ...] = ()
    budgets: tuple[str, ...] = ()
    plans: tuple[str, ...] = ()
    frames: tuple[int, ...] = ()
    batches: tuple[int, ...] = (1,)
    repeats: int = 3
    new_tokens: int = 8
    text_tokens: int = 32
    device: str = "cpu"
    dtype: str = "auto"
    attention: str = "sdpa"
    threads: int = 1
    text: str = "qwen2-0.5b"
    encoder_blocks: int | None = None
    image: str | None = None
    question: str = "What is the total?"

    def __post_init__(self) -> None:
        known = model_methods()
        unknown = [name for name in self.methods if name not in known]
        if unknown:
            raise FoveateError(f"methods {unknown} are not known; possible are {', '.join(known)}.")
        for plan in self.plans:
            Plan.of(plan)
        for name in self.models:
            if name not in SHAPES and name != "embedded" and "/" not in name and not Path(name).is_dir():
                raise FoveateError(
                    f"there is no model {name!r}; possible are {', '.join(SHAPES)}, embedded, a folder and a Hub id."
                )
        clips = [name for name, shape in SHAPES.items() if shape.clip is not None]
        if self.frames and (min(self.frames) < 1 or not set(self.models) <= set(clips)):
            raise FoveateError(f"clips have at least one frame, and are measured on {', '.join(clips)}.")
        if self.encoder_blocks is not None and (self.encoder_blocks < 1 or not set(self.models) <= set(SHAPES)):
            raise FoveateError(
                f"an encoder has at least one block, and only those of {', '.join(SHAPES)} are shortened."
            )
        if not self.models or not self.batches or min(self.repeats, self.text_tokens, self.threads) < 1:
            raise FoveateError("at least one model, one batch, one turn, one text token and one thread are needed.")
        if min(self.batches) < 1 or self.new_tokens < 2:
            raise FoveateError("a batch has at least one prompt, and two new tokens are needed to time decoding.")
        if self.dtype not in ("auto", *DTYPES) or self.text not in TEXTS:
            raise FoveateError(f"dtype is auto or one of {', '.join(DTYPES)}, text one of {', '.join(TEXTS)}.")
        if self.device not in ("cpu", "cuda"):
            raise FoveateError(f"device {self.device!r} is not known; possible are cpu and cuda.")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise FoveateError("there is no CUDA device here; use --device cpu.")


def groups_of(settings: SpeedSettings, budgets: tuple[str, ...]) -> dict[str, list[str]]:
    """Group the plans by the budget at which they are compared.

    A plan of several steps, or of a method that takes no budget, is compared at the tokens that stay; until it has run
    its budget is "".

    Args:
        settings: Of the run.
        budgets: Of the model, where the settings name none.
    """
    named = settings.methods
    if not named and not settings.plans:
        # All but those that need weights or data of their own, or whose own rule decides how many tokens stay.
        named = tuple(name for name, cls in model_methods().items() if not cls.trained and cls.budget != "none")
        if settings.frames:
            named = tuple(name for name in named if model_methods()[name].modality == ("video",))
    groups: dict[str, list[str]] = {}
    for budget in (settings.budgets or budgets) if named else ():
        groups[budget] = [f"{name}:{budget}" for name in named if name not in CONTROLS]
    for text in settings.plans:
        plan = Plan.of(text)
        step = plan.steps[0]
        alone = len(plan.steps) == 1 and step.budget is not None
        group = groups.setdefault(str(step.budget) if alone else "", [])
        if text not in group and step.method.name not in CONTROLS:
            group.append(text)
    return groups
