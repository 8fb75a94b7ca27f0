"""Rows of a released model's result: score, interval and comparison with the full model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from foveate.benchmark.budgets import FULL_MODEL, budget_of
from foveate.benchmark.matching import normal
from foveate.benchmark.released.evaluations import Evaluation
from foveate.benchmark.scores import method_of
from foveate.core.errors import FoveateError
from foveate.statistics import paired_bootstrap, wilson_interval

#: Task of the row over all tasks, as in results of `foveate bench accuracy`.
ALL = "all"


def rows_of(
    model: str, plans: Sequence[str], tasks: Sequence[str], complete: Mapping[tuple[str, str], Evaluation]
) -> list[dict[str, Any]]:
    """Score evaluations.

    Args:
        model: Name of the model.
        plans: Plans to be scored, the full model among them.
        tasks: Tasks to be scored.
        complete: Evaluations by (task, plan); those of the full model are there for every task.

    Returns:
        For every plan a row per task, and one over all tasks ("all"), each with the same weight, if the plan has been
        evaluated on all of them. Accuracy is the mean score of a question.

    Raises:
        FoveateError: the questions of a plan are not those of the full model.
    """
    rows = []
    for plan in plans:
        pairs = {task: (complete[task, plan], complete[task, FULL_MODEL]) for task in tasks if (task, plan) in complete}
        for task, (evaluation, full_model) in pairs.items():
            if evaluation.questions != full_model.questions:
                raise FoveateError(
                    f"the questions of {task} have changed between the full model and {plan}; choose another folder."
                )
        head = {"model": model, "plan": plan, "method": method_of(plan), "budget": budget_of(plan)}
        rows += [
            head | {"metric": pair[0].metric, "metrics": pair[0].metrics} | _score(task, {task: pair})
            for task, pair in pairs.items()
        ]
        if len(pairs) == len(tasks):
            rows.append(head | _score(ALL, pairs))
    return rows


def _score(name: str, pairs: Mapping[str, tuple[Evaluation, Evaluation]]) -> dict[str, Any]:
    """Score a plan on some tasks, each with the same weight; every pair is that of the plan and the full model."""
    scores = [score for evaluation, _ in pairs.values() for score in evaluation.scores]
    compared = paired_bootstrap(
        scores,
        [score for _, full_model in pairs.values() for score in full_model.scores],
        strata=[task for task, (evaluation, _) in pairs.items() for _ in evaluation.scores],
    )
    low, high = compared.low, compared.high
    if len(pairs) == 1 and set(scores) <= {0.0, 1.0}:  # right or wrong, and nothing between
        low, high = wilson_interval(round(sum(scores)), len(scores))
    return {
        "task": name,
        "count": len(scores),
        "accuracy": _rounded(compared.accuracy),
        "low": _rounded(low),
        "high": _rounded(high),
        "relative": _rounded(compared.ratio),
        "relative_low": _rounded(compared.ratio_low),
        "relative_high": _rounded(compared.ratio_high),
        "agreement": _rounded(fmean(_agreement(*pair) for pair in pairs.values())),
        "tokens_in": _rounded(fmean(evaluation.tokens_in for evaluation, _ in pairs.values())),
        "tokens_kept": _rounded(fmean(evaluation.tokens_kept for evaluation, _ in pairs.values())),
    }


def _agreement(evaluation: Evaluation, full_model: Evaluation) -> float:
    """Share of answers that equal those of the full model."""
    return fmean(
        normal(answer) == normal(other) for answer, other in zip(evaluation.answers, full_model.answers, strict=True)
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
