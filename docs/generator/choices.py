"""The tables of the page *Which method?*: the most accurate training-free plans for three uses."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from foveate.benchmark.results import inert
from foveate.gallery import gallery
from generator.accuracy import BASELINES, Row, runs
from generator.gallery import SITES
from generator.tables import table

#: Methods in each table by their site, and the baselines below them.
SHOWN = {"pre_llm": 4, "decoder": 2}
CONTROLS = {"pre_llm": ("random", "downsample"), "decoder": ("random-decoder",)}


def general(root: Path) -> str:
    """Every task at 25 %."""
    return _choice(root, "all", "25%")


def text_heavy(root: Path) -> str:
    """Reading at 50 %, where small text survives."""
    return _choice(root, "group:reading", "50%")


def aggressive(root: Path) -> str:
    """Every task at 10 %."""
    return _choice(root, "all", "10%")


def _choice(root: Path, task: str, budget: str) -> str:
    """The plans with the highest relative accuracy, averaged over all models, and the baselines."""
    rows = [row for run in runs(root) for row in run["rows"] if row["task"] == task and row["relative"] is not None]
    models = list(dict.fromkeys(row["model"] for row in rows))
    cells: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row["budget"] == budget:
            cells.setdefault(row["plan"], {})[row["model"]] = row
    if not cells:
        return "*Not measured yet.*"
    sites = {entry.name: entry.site for entry in gallery() if not entry.trained}
    complete = {plan: by_model for plan, by_model in cells.items() if len(by_model) == len(models)}
    means = {plan: fmean(row["relative"] for row in by_model.values()) for plan, by_model in complete.items()}
    lines = []
    for site, count in SHOWN.items():
        methods = [
            plan
            for plan in sorted(complete, key=lambda plan: -means[plan])
            if sites.get(_name(plan)) == site
            and _name(plan) not in BASELINES
            and not any(map(inert, complete[plan].values()))
        ]
        for plan in methods[:count] + [plan for plan in complete if _name(plan) in CONTROLS[site]]:
            shown = f"*{plan}*" if _name(plan) in BASELINES else f"[`{plan}`](methods/{_name(plan)}.md)"
            by_model = [f"{100 * complete[plan][model]['relative']:.0f} %" for model in models]
            lines.append([shown, SITES[site][0].lower(), *by_model, f"**{100 * means[plan]:.0f} %**"])
    return table(["plan", "acts", *(Path(model).name for model in models), "mean"], lines)


def _name(plan: str) -> str:
    return plan.split(":")[0].split("(")[0]
