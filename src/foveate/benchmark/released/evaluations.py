"""Evaluations of one task with one plan, and the folder that keeps them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from foveate.benchmark.released.settings import slug
from foveate.core.errors import FoveateError
from foveate.core.files import write_json
from foveate.core.text_files import read_json

KIND = "released-evaluation"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Answers of a model with one plan to the questions of one task.

    Args:
        metric: What a question's score is.
        scores: Score of every question, 0 to 1, in the order of the task.
        answers: Answer to every question.
        questions: Fingerprint of the questions; scores are compared only where it is the same.
        total: Number of questions that the task has.
        metrics: Metrics of the task over all questions, as the evaluator computes them.
        tokens_in: Visual tokens per image before compression, the mean over the images.
        tokens_kept: Of these, tokens that the language model worked on, the mean over its layers and the images.
        seconds: Duration of the evaluation.
        dtype: Precision of the weights.
        revision: Commit of the model on the Hub; None for a folder.
    """

    metric: str
    scores: tuple[float, ...]
    answers: tuple[str, ...]
    questions: str
    total: int
    metrics: dict[str, float]
    tokens_in: float
    tokens_kept: float
    seconds: float
    dtype: str
    revision: str | None = None


class Evaluator(Protocol):
    """Asks a model the questions of tasks."""

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the packages that ask and score, by name."""

    def check(self, tasks: Sequence[str]) -> None:
        """Raise FoveateError for a task that cannot be asked; nothing is downloaded."""

    def evaluate(self, task: str, plan: str, progress: Callable[[int, int], object]) -> Evaluation:
        """Ask all questions of a task with a plan; `progress` is called with answered and all questions."""

    def close(self) -> None:
        """Release the model."""


class Evaluations:
    """Folder of complete evaluations, one JSON file for every task and plan.

    Args:
        folder: The folder, made with the first file.
        settings: What all of them have in common.

    Attributes:
        complete: evaluations by (task, plan).
        impossible: why a plan cannot run on a task, with "code" and "reason", by (task, plan).
        heads: what else is recorded of an evaluation, such as versions and command, by (task, plan).

    Raises:
        FoveateError: the folder holds evaluations with other settings, or a file that is none.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self.settings = folder, json.loads(json.dumps(settings))
        self.complete: dict[tuple[str, str], Evaluation] = {}
        self.impossible: dict[tuple[str, str], dict[str, str]] = {}
        self.heads: dict[tuple[str, str], dict[str, Any]] = {}
        for path in sorted(folder.glob("*.json")):
            self._read(path)

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key in self.complete or key in self.impossible

    def add(self, task: str, plan: str, result: Evaluation | FoveateError, head: dict[str, Any]) -> None:
        """Record an evaluation, or why there is none, and write it in one step."""
        document = {"kind": KIND, "settings": self.settings, "task": task, "plan": plan, "head": head}
        if isinstance(result, FoveateError):
            document["impossible"] = result.as_json()
        else:
            document["evaluation"] = asdict(result)
        self.folder.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256(f"{task}\n{plan}".encode()).hexdigest()[:8]
        write_json(self.folder / f"{slug(task)[:60]}-{slug(plan)[:80]}-{digest}.json", document)
        self._take(document)

    def _take(self, document: dict[str, Any]) -> None:
        key = document["task"], document["plan"]
        self.heads[key] = document["head"]
        if "impossible" in document:
            self.impossible[key] = document["impossible"]
            return
        values: dict[str, Any] = dict(document["evaluation"])
        values |= {name: tuple(values[name]) for name in ("scores", "answers")}
        self.complete[key] = Evaluation(**values)

    def _read(self, path: Path) -> None:
        try:
            document = read_json(path)
            if document["kind"] != KIND:
                raise ValueError(document["kind"])
            settings = document["settings"]
            self._take(document)
        except (ValueError, KeyError, TypeError) as error:
            raise FoveateError(f"{path} is no evaluation of this benchmark; choose another folder.") from error
        if settings != self.settings:
            different = sorted(key for key in self.settings if settings.get(key) != self.settings[key])
            raise FoveateError(
                f"{path.parent} was made with other settings ({', '.join(different)}); choose another folder."
            )
