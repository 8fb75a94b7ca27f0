"""Settings of a search."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from foveate.benchmark.questions import QuestionSettings, check_models
from foveate.core.errors import FoveateError
from foveate.core.plan import Budget
from foveate.loading import fingerprint
from foveate.synthetic.clips import CLIP_TASKS
from foveate.tune.goal import Goal

#: Steps of about a fourth: a few hundred questions cannot distinguish finer ones.
BUDGETS = ("5%", "6.3%", "8%", "10%", "12.5%", "16%", "20%", "25%", "32%", "40%", "50%", "63%", "80%")

#: Settings that may differ when a search is resumed.
_FREE = ("trials", "finalists", "batch_size")


@dataclass(frozen=True, kw_only=True)
class TuneSettings(QuestionSettings):
    """Settings of a search. On resuming, trials, finalists and batch size may differ.

    Args:
        model: A folder, a Hub id, or "embedded".
        target_ttft: The most that a plan may cost, relative to the full model.
        min_accuracy: The least relative accuracy.
        count: Items of every task; half are searched on, half confirm.
        trials: Plans to try.
        methods: Methods as in plans, also with arguments; none: all that can act on the model.
        budgets: Budgets to choose from.
        chains: Whether a method before the language model and one inside it may be joined.
        cost: What the limit and the search go by: measured time to the first token, or counted operations.
        objective: "accuracy", or "information-flow": how far the state that the answer begins from stays the same.
        repeats: Timed turns of every plan.
        finalists: The most plans that are confirmed.
        seed: Of draws and of the division of questions.

    Raises:
        FoveateError: If something is not known or not possible.
    """

    model: str = "embedded"
    target_ttft: float | None = None
    min_accuracy: float | None = None
    count: int = 40
    trials: int = 40
    methods: tuple[str, ...] = ()
    budgets: tuple[str, ...] = BUDGETS
    chains: bool = True
    cost: Literal["time", "flops"] = "time"
    objective: Literal["accuracy", "information-flow"] = "accuracy"
    repeats: int = 5
    finalists: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        _ = self.goal
        super().__post_init__()
        check_models((self.model,))
        if not self.budgets:
            raise FoveateError("at least one budget is needed.")
        if min(self.trials, self.repeats, self.finalists) < 1 or self.seed < 0:
            raise FoveateError("trials, repeats and finalists must be at least 1, the seed at least 0.")
        if self.count < 2:
            raise FoveateError(
                "count must be at least 2: one part of the questions is for the search, the other for confirmation."
            )
        if clips := [task for task in self.tasks if task in CLIP_TASKS]:
            raise FoveateError(f"a search asks about images, and {clips[0]} is about clips; name other tasks.")
        if self.cost not in ("time", "flops"):
            raise FoveateError(f"cost {self.cost!r} is not one of time, flops.")
        if self.objective not in ("accuracy", "information-flow"):
            raise FoveateError(f"objective {self.objective!r} is not one of accuracy, information-flow.")
        if self.objective != "accuracy" and self.min_accuracy is not None:
            raise FoveateError(
                "information flow does not measure accuracy: with --objective information-flow give "
                "--target-ttft alone."
            )
        object.__setattr__(self, "budgets", tuple(str(Budget.parse(budget)) for budget in self.budgets))

    @property
    def goal(self) -> Goal:
        """Goal of the search."""
        return Goal(self.target_ttft, self.min_accuracy)

    @property
    def described(self) -> dict[str, Any]:
        """Settings that must agree for trials to share a folder, with the content of task files and of the model."""
        values = {name: value for name, value in asdict(self).items() if name not in _FREE}
        files = [task for task in self.tasks if Path(task).suffix in (".json", ".jsonl")]
        values["content of files"] = [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files]
        if self.model != "embedded" and Path(self.model).is_dir():
            values["content of the model"] = fingerprint(self.model)
        return json.loads(json.dumps(values))


def methods_in(text: str) -> tuple[str, ...]:
    """Parse the methods in `divprune,hiprune(alpha=0.1, layer=2)`; commas within parentheses do not separate."""
    return tuple(part.strip() for part in re.split(r",(?![^()]*\))", text) if part.strip())
