"""Accuracy on clips, from `benchmarks/results/clip-accuracy-*.json` (`foveate bench accuracy --tasks clips`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def runs(root: Path) -> str:
    """One table per run: a row for every task, a column for every plan.

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
                rows.setdefault(row["task"], {})[row["plan"]] = row
        plans = list(rows["all"])
        settings, clips = run["settings"], run["settings"]["clips"]
        header = ["task", "questions", "most frequent answer", *(f"`{plan}`" for plan in plans)]
        lines = []
        for task, by_plan in rows.items():
            one = by_plan[plans[0]]
            lines.append(
                [task, f"{one['count']:,}", _percent(one["majority"]), *(_cell(by_plan[plan]) for plan in plans)]
            )
        lines.append(["tokens", "", "", *(f"{rows['all'][plan]['tokens_kept']:.0f}" for plan in plans)])
        refused = [f"- `{line['plan']}`: {line['reason']}" for line in run["impossible"]]
        about = (
            f"Frames of {clips['size'][0]} x {clips['size'][1]} pixels, {clips['fps']:g} per second, clips of "
            f"{clips['seconds'][0]} to {clips['seconds'][1]} seconds, difficulty {settings['difficulty']:g}; from "
            f"`{run['path']}`, created by `{run['command']}` on {run['hardware']['cpu']}."
        )
        parts += [table(header, lines), about, *(["Not supported:", "\n".join(refused)] if refused else [])]
    return "\n\n".join(parts) or "*Not measured yet.*"


def _cell(row: dict[str, Any]) -> str:
    return f"{_percent(row['accuracy'])} ({_percent(row['low'])} to {_percent(row['high'])})"


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"
