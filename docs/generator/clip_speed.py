"""Speed on clips, from `benchmarks/results/speed-clips-*.json` (`foveate bench speed --frames`)."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from foveate.benchmark.budgets import CONTROLS
from foveate.benchmark.results import read_results
from foveate.benchmark.speed.formatting import unsteady
from foveate.core.full_model import FULL_MODEL


def runs(root: Path) -> str:
    """For every run and number of frames a table: a row for every method, a column for every budget.

    Args:
        root: The repository.
    """
    from generator.tables import table

    parts = []
    for path in sorted((root / "benchmarks/results").glob("speed-clips-*.json")):
        run: dict[str, Any] = read_results(path)
        by_model: dict[str, list[dict[str, Any]]] = {}
        for row in run["rows"]:
            by_model.setdefault(row["model"], []).append(row)
        for model, rows in by_model.items():
            full = [row for row in rows if row["method"] == FULL_MODEL]
            seconds = median(row["seconds"]["ttft"] for row in full)
            what = f"{full[0]['tokens_in']:,} tokens, {full[0]['dtype']}, first token of the full model after"
            parts += [f"**{model.rpartition(', ')[2]}**, {what} {seconds:.1f} s:", table(*_by_budget(rows))]
        hardware, settings = run["hardware"], run["settings"]
        parts += filter(None, [unsteady(run)])
        parts.append(
            f"{hardware['cpu']}, threads: {hardware['threads']}, language model {settings['text']}, "
            f"{settings['repeats']} turns; from `{path.relative_to(root)}`, created by `{run['command']}`."
        )
    return "\n\n".join(parts) or "*Not measured yet.*"


def _by_budget(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the speed-up, and for methods the efficiency; those inside the language model at the end."""
    plans = [row for row in rows if row["method"] != FULL_MODEL]
    budgets = {row["budget"]: row["tokens"] for row in plans if not _inside(row)}
    cells: dict[str, dict[str, str]] = {}
    for row in sorted(plans, key=lambda row: (_inside(row), _is_control(row))):
        name = row["plan"].replace(f":{row['budget']}", "")
        efficiency = "" if _is_control(row) else f" ({row['efficiency']:.2f})"
        cells.setdefault(name, {})[row["budget"]] = f"{row['speed_up']:.2f}{efficiency}"
    lines = [[f"`{name}`", *(by.get(budget, "") for budget in budgets)] for name, by in cells.items()]
    return ["method", *(f"{budget[:-1]} %, {tokens:,} tokens" for budget, tokens in budgets.items())], lines


def _is_control(row: dict[str, Any]) -> bool:
    return row["control"] == row["plan"] or row["method"] in CONTROLS


def _inside(row: dict[str, Any]) -> bool:
    """Whether tokens leave inside the language model."""
    return row["tokens_mean"] > row["tokens_in"] * float(row["budget"].rstrip("%")) / 100 + 1
