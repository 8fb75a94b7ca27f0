"""Benchmark of a released model, resumable after every task and plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from foveate.benchmark import profiling, speed
from foveate.benchmark.budgets import FULL_MODEL
from foveate.benchmark.released.evaluations import Evaluation, Evaluations, Evaluator
from foveate.benchmark.released.leaderboard import FORMAT, LeaderboardRow, write_leaderboard
from foveate.benchmark.released.scoring import ALL, rows_of
from foveate.benchmark.released.settings import ReleasedSettings, refused, slug
from foveate.benchmark.results import write_json
from foveate.core.errors import FoveateError

NOTE = (
    "Accuracy: mean score of a question, 0 to 1, by the task's first metric that has one for every question, with a "
    "95 % interval (Wilson where scores are 0 and 1, else bootstrap); metrics: all metrics of the task, as lmms-eval "
    "computes them. Relative: accuracy over that of the full model on the same questions, with a 95 % interval of the "
    "paired bootstrap. Agreement: share of answers equal to the full model's. Tokens: per image, the mean over the "
    "layers of the language model. Tasks have the same weight."
)
#: Names in the folder of a run.
RESULT, EVALUATIONS, SPEED = "result.json", "evaluations", "speed.json"

Progress = Callable[[int, int, str], object]


def run(
    settings: ReleasedSettings,
    folder: Path,
    evaluator: Evaluator,
    *,
    command: str = "",
    report: Callable[[str], object] = lambda line: None,
    progress: Progress = lambda done, total, what: None,
) -> dict[str, Any]:
    """Evaluate all plans on all tasks, measure their speed, and write the result and the rows of the leaderboard.

    What the folder has already is not measured again. Tasks and plans are checked before anything is measured.

    Args:
        settings: What to measure.
        folder: For the result, the rows, and a file for every task and plan.
        evaluator: Asks the questions; it is closed before the speed is measured.
        command: The command line, for the files.
        report: Called with a line about everything begun.
        progress: Called with the number of answered questions, of all questions, and what is at work.

    Returns:
        The content of the result file, with the path of the rows as "leaderboard".

    Raises:
        FoveateError: a task is not known, the model refuses a plan, the full model cannot answer a task, or the folder
            was made with other settings.
    """
    evaluator.check(settings.tasks)
    controls = refused(settings)
    evaluations = Evaluations(folder / EVALUATIONS, settings.described)
    plans = [plan for plan in settings.compared if plan not in controls]
    hardware = profiling.hardware(settings.runs_on)
    versions = profiling.versions() | evaluator.versions
    pairs = [(task, plan) for task in settings.tasks for plan in plans]
    try:
        for number, (task, plan) in enumerate(pairs, start=1):
            if (task, plan) in evaluations:
                continue
            what = f"{task}, {plan} ({number} of {len(pairs)})"
            report(what)
            head = {
                "command": command,
                "versions": versions,
                "hardware": hardware,
                "date": datetime.now(UTC).date().isoformat(),
            }
            result = _evaluate(evaluator, task, plan, lambda done, total, what=what: progress(done, total, what))
            if isinstance(result, FoveateError):
                report(f"{plan} cannot run on {task}: {result}")
            evaluations.add(task, plan, result, head)
    finally:
        evaluator.close()
    times: dict[str, Any] | None = None
    if settings.speed:
        times = speed.run(settings.timing(), folder / SPEED, resume=True, command=command, report=report)
    rows = rows_of(settings.name, plans, settings.tasks, evaluations.complete)
    impossible = [{"plan": plan, **error.as_json()} for plan, error in controls.items()]
    impossible += [
        {"plan": plan, "task": task, **why}
        for (task, plan), why in evaluations.impossible.items()
        if task in settings.tasks and plan in plans
    ]
    document = {
        **profiling.head("released", command, hardware, asdict(settings), NOTE),
        "versions": versions,
        "rows": rows,
        "impossible": [{"model": settings.name, **line} for line in impossible],
        "speed": times,
    }
    write_json(folder / RESULT, document)
    leaderboard = folder / f"{slug(settings.name)}.jsonl"
    write_leaderboard(leaderboard, _leaderboard_rows(settings, evaluations, rows, times))
    return document | {"leaderboard": str(leaderboard)}


def _evaluate(
    evaluator: Evaluator, task: str, plan: str, progress: Callable[[int, int], object]
) -> Evaluation | FoveateError:
    """Return the evaluation, or why a plan is impossible; the full model has to answer."""
    try:
        return evaluator.evaluate(task, plan, progress)
    except FoveateError as error:
        if plan == FULL_MODEL:
            raise
        return error


def _leaderboard_rows(
    settings: ReleasedSettings,
    evaluations: Evaluations,
    rows: list[dict[str, Any]],
    times: dict[str, Any] | None,
) -> list[LeaderboardRow]:
    """Convert the rows of single tasks."""
    speed_ups = {row["plan"]: round(row["speed_up"], 4) for row in reversed(times["rows"])} if times else {}
    converted = []
    for row in rows:
        if row["task"] == ALL:
            continue
        key = row["task"], row["plan"]
        evaluation, head = evaluations.complete[key], evaluations.heads[key]
        converted.append(
            LeaderboardRow(
                format=FORMAT,
                model=settings.name,
                revision=evaluation.revision,
                plan=row["plan"],
                task=row["task"],
                metric=row["metric"],
                n=row["count"],
                complete=row["count"] == evaluation.total,
                score=row["accuracy"],
                low=row["low"],
                high=row["high"],
                relative=row["relative"],
                relative_low=row["relative_low"],
                relative_high=row["relative_high"],
                metrics=row["metrics"],
                tokens=row["tokens_kept"],
                tokens_full_model=row["tokens_in"],
                speed_up=speed_ups.get(row["plan"]),
                dtype=evaluation.dtype,
                device=head["hardware"].get("gpu") or head["hardware"]["cpu"],
                versions=head["versions"],
                command=head["command"],
                date=head["date"],
            )
        )
    return converted
