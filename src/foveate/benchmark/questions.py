"""Settings that all accuracy benchmarks share: questions, precision and device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from foveate.benchmark.tasks import Item, check, items, names, tasks_of
from foveate.core.errors import FoveateError
from foveate.loading import DTYPES, locate


@dataclass(frozen=True, kw_only=True)
class QuestionSettings:
    """Which questions are asked and how; benchmarks inherit from it.

    Args:
        tasks: As `tasks.tasks_of` reads them.
        count: Items of every task.
        sides: Shortest and longest side of rendered pages in pixels.
        difficulty: Of rendered pages, 0 to 1.
        batch_size: Items answered at once.
        dtype: As `foveate.load` takes it.
        device: "cpu", "cuda" or the like; None: the first GPU, or the CPU.
        threads: Threads of the CPU; None: all that PyTorch takes.

    Raises:
        FoveateError: If something is not known or not possible.
    """

    tasks: tuple[str, ...] = names()
    count: int = 100
    sides: tuple[int, int] = (128, 640)
    difficulty: float = 1.0
    batch_size: int = 8
    dtype: str = "auto"
    device: str | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        if not self.tasks:
            raise FoveateError("at least one task is needed.")
        if min(self.count, self.batch_size, self.threads or 1) < 1:
            raise FoveateError("count, batch size and threads must be positive integers.")
        if self.dtype not in DTYPES:
            raise FoveateError(f"dtype {self.dtype!r} is not one of {', '.join(DTYPES)}.")
        object.__setattr__(self, "tasks", tasks_of(self.tasks))
        check(self.tasks, self.sides, self.difficulty)

    @property
    def runs_on(self) -> torch.device:
        """Device that the model runs on."""
        return torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def items_of(self, task: str) -> Iterator[Item]:
        """Return the items of one task."""
        return items(task, self.count, difficulty=self.difficulty, sides=self.sides)


def check_models(models: tuple[str, ...]) -> None:
    """Raise FoveateError for a model that is neither a folder, a Hub id nor "embedded".

    Raises:
        FoveateError: there is no such model, or none is named.
    """
    if not models:
        raise FoveateError("at least one model is needed.")
    for name in models:
        locate(None if name == "embedded" else name)
