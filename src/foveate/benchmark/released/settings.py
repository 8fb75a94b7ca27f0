"""Settings of the benchmark of a released model, and which plans its family supports."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from foveate.benchmark.budgets import FULL_MODEL, with_controls
from foveate.benchmark.speed import SpeedSettings
from foveate.core.errors import FoveateError
from foveate.core.full_model import is_full_model
from foveate.core.plan import Plan
from foveate.loading import DTYPES, fingerprint, load_skeleton, locate

#: Short names of tasks, each with the task of lmms-eval whose answers are public.
TASKS = {
    "textvqa": "textvqa_val",
    "chartqa": "chartqa",
    "docvqa": "docvqa_val",
    "pope": "pope",
    "mme": "mme",
}


@dataclass(frozen=True, kw_only=True)
class ReleasedSettings:
    """Settings of the benchmark of a released model. Resuming needs those in `described`; all else may differ.

    Args:
        model: A Hub id, a folder, or "embedded".
        plans: Plans as text.
        tasks: Names of `TASKS` or of tasks that the evaluator knows.
        limit: Maximum number of questions per task; None: all.
        controls: Whether random tokens and the smaller image are measured at the budgets of the plans.
        speed: Whether the speed of the plans is measured too.
        batch_size: Questions answered at once.
        dtype: As `foveate.load` takes it.
        device: "cpu" or "cuda"; None: the GPU if there is one.
        attention: Attention implementation of the model.
        repeats: Timed turns of the speed benchmark.
        image: Image of the speed benchmark; None: a rendered receipt.

    Raises:
        FoveateError: If something is not known or not possible.
    """

    model: str
    plans: tuple[str, ...]
    tasks: tuple[str, ...] = tuple(TASKS)
    limit: int | None = None
    controls: bool = True
    speed: bool = True
    batch_size: int = 1
    dtype: str = "auto"
    device: str | None = None
    attention: str = "sdpa"
    repeats: int = 3
    image: str | None = None

    def __post_init__(self) -> None:
        locate(self.location)
        if self.dtype not in DTYPES:
            raise FoveateError(f"dtype {self.dtype!r} is not one of {', '.join(DTYPES)}.")
        if min(self.batch_size, self.repeats, 1 if self.limit is None else self.limit) < 1:
            raise FoveateError("limit, batch size and repeats must be positive integers.")
        if self.device not in (None, "cpu", "cuda"):
            raise FoveateError(f"device {self.device!r} is not known; possible are cpu and cuda.")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise FoveateError("there is no CUDA device here; use --device cpu.")
        if self.image is not None and not Path(self.image).is_file():
            raise FoveateError(f"there is no image {self.image!r}.")
        plans = dict.fromkeys(str(Plan.of(text)) for text in self.plans if not is_full_model(text))
        if not plans:
            raise FoveateError("at least one plan is needed, such as --plans divprune:25%.")
        if not self.tasks:
            raise FoveateError(f"at least one task is needed, such as {', '.join(TASKS)}.")
        object.__setattr__(self, "plans", tuple(plans))
        if self.speed:  # what it refuses is said before the hours of the evaluation
            self.timing()
        object.__setattr__(self, "tasks", tuple(dict.fromkeys(TASKS.get(task, task) for task in self.tasks)))

    @property
    def location(self) -> str | None:
        """The model as `foveate.load` takes it."""
        return None if self.model == "embedded" else self.model

    @property
    def name(self) -> str:
        """Name of the model in results: its Hub id, or the last part of its folder."""
        return Path(self.model).resolve().name if Path(self.model).is_dir() else self.model

    @property
    def runs_on(self) -> torch.device:
        """Device that the model runs on."""
        return torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))

    @property
    def compared(self) -> tuple[str, ...]:
        """All plans that are measured: the full model first, then controls and plans."""
        return with_controls(self.plans) if self.controls else (FULL_MODEL, *self.plans)

    def timing(self) -> SpeedSettings:
        """Return the settings of the speed benchmark."""
        return SpeedSettings(
            models=(self.model,),
            plans=self.plans,
            repeats=self.repeats,
            device=self.runs_on.type,
            dtype=self.dtype,
            attention=self.attention,
            threads=torch.get_num_threads(),
            image=self.image,
        )

    @property
    def described(self) -> dict[str, Any]:
        """Settings that must agree for evaluations to share a folder, with the content of a model that is a folder."""
        names = ("model", "limit", "dtype", "attention")
        described = {name: getattr(self, name) for name in names} | {"device": self.runs_on.type}
        if Path(self.model).is_dir():
            described["content of the model"] = fingerprint(self.model)
        return described


def slug(text: str) -> str:
    """Return a text as part of a file name."""
    return re.sub(r"[^\w.%+@=-]+", "-", text).strip("-.") or "model"


def refused(settings: ReleasedSettings) -> dict[str, FoveateError]:
    """Attach every plan to the model without its weights, and return the controls that cannot be attached.

    Only the configuration and the processor are read.

    Raises:
        FoveateError: the model is no vision-language model, or refuses one of the plans that were asked for.
    """
    from foveate.runtime import compress

    model, processor = load_skeleton(settings.location)
    errors: dict[str, FoveateError] = {}
    for plan in settings.compared:
        if plan == FULL_MODEL:
            continue
        try:
            compress(model, plan, processor=processor).restore()
        except FoveateError as error:
            if plan in settings.plans:
                raise
            errors[plan] = error
    return errors
