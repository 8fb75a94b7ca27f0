"""An evaluator of the benchmark of released models that reads its scores from a table: no model, no lmms-eval."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from foveate.benchmark.released import Evaluation
from foveate.core.errors import FoveateError

#: Scores of the questions by plan; every task has them.
SCORES: dict[str, tuple[float, ...]] = {
    "full model": (1, 1, 1, 0, 1, 0.5),
    "random:50%": (0, 1, 0, 0, 0, 0.5),
    "downsample:50%": (0, 0, 1, 0, 0, 0.5),
    "divprune:50%": (1, 1, 0, 0, 1, 1),
    "divprune:25%": (1, 0, 0, 0, 1, 0.5),
    "random:25%": (0, 0, 0, 0, 1, 0.5),
    "downsample:25%": (0, 0, 0, 0, 0, 0),
}


class AnswerSheet:
    """Evaluator with the scores of `SCORES`.

    Args:
        stop_before: An evaluation that is interrupted, as (task, plan).
        refuses: Evaluations that a plan cannot do.
        questions: Fingerprint of the questions.
    """

    def __init__(
        self,
        stop_before: tuple[str, str] | None = None,
        refuses: Sequence[tuple[str, str]] = (),
        questions: str = "six questions",
    ) -> None:
        self.stop_before, self.refuses, self.questions = stop_before, refuses, questions
        self.asked: list[tuple[str, str]] = []
        self.closed = False

    @property
    def versions(self) -> dict[str, str]:
        return {"lmms-eval": "0"}

    def check(self, tasks: Sequence[str]) -> None:
        unknown = [task for task in tasks if task not in ("words", "totals")]
        if unknown:
            raise FoveateError(f"there is no task {unknown[0]!r}.")

    def evaluate(self, task: str, plan: str, progress: Callable[[int, int], object]) -> Evaluation:
        if (task, plan) == self.stop_before:
            raise KeyboardInterrupt
        self.asked.append((task, plan))
        if (task, plan) in self.refuses:
            raise FoveateError(f"{plan} does not fit {task}.")
        scores = SCORES[plan]
        progress(len(scores), len(scores))
        return Evaluation(
            metric="exact_match",
            scores=scores,
            answers=tuple(f"Answer {score}" for score in scores),
            questions=self.questions,
            total=len(scores) + (task == "totals"),
            metrics={"exact_match": sum(scores) / len(scores)},
            tokens_in=100.0,
            tokens_kept=100.0 if plan == "full model" else 25.0,
            seconds=1.0,
            dtype="float32",
        )

    def close(self) -> None:
        self.closed = True
