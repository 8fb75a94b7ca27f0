"""Accuracy on clips, from `benchmarks/results/clip-accuracy-*.json` (`foveate bench accuracy --tasks clips`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def runs(root: Path) -> str:
    """One table per run: a row for every plan, a column for every task.

    Args:
        root: The repository.
    """
    from generator.accuracy import runs
    from generator.tables import table

    parts = []
    for run in runs(root, "clip-accuracy"):
        rows: dict[str, dict[str, dict[str, Any]]] = {}
        for row in run["rows"]:
            if not row["task"].startswith("group:"):
                rows.setdefault(row["plan"], {})[row["task"]] = row
        settings, clips = run["settings"], run["settings"]["clips"]
        full = next(iter(rows.values()))
        tasks = [task for task in full if task != "all"]
        header = ["plan", "tokens", "all tasks", "relative", *(task.removeprefix("clip_") for task in tasks)]
        lines = [["*most frequent answer*", "", _percent(full["all"]["majority"]), ""]]
        lines[0] += [_percent(full[task]["majority"]) for task in tasks]
        for plan, by_task in rows.items():
            every = by_task["all"]
            interval = f"{_percent(every['accuracy'])} ({_percent(every['low'])} to {_percent(every['high'])})"
            cells = [f"`{plan}`", f"{every['tokens_kept']:.0f}", interval, _percent(every["relative"])]
            lines.append(cells + [_percent(by_task[task]["accuracy"]) for task in tasks])
        refused = [f"- `{line['plan']}`: {line['reason']}" for line in run["impossible"]]
        about = (
            f"{full[tasks[0]]['count']:,} questions per task; frames of {clips['size'][0]} x {clips['size'][1]} px, "
            f"{clips['fps']:g} per second, clips of {clips['seconds'][0]} to {clips['seconds'][1]} seconds, difficulty "
            f"{settings['difficulty']:g}; from `{run['path']}`, created by `{run['command']}` on "
            f"{run['hardware']['cpu']}."
        )
        parts += [table(header, lines), about, *(["Not supported:", "\n".join(refused)] if refused else [])]
    return "\n\n".join(parts) or "*Not measured yet.*"


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"
