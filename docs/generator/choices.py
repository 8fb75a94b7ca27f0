"""Which plan to use: the most accurate training-free plans for three uses, by the results of all measured models."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from foveate.benchmark.results import inert
from foveate.gallery import gallery
from generator.accuracy import BASELINES, Row, runs
from generator.gallery import SITES
from generator.tables import table

#: Methods in each table by their site, and the baselines below them.
SHOWN = {"pre_llm": 4, "decoder": 2}
CONTROLS = {"pre_llm": ("random", "downsample"), "decoder": ("random-decoder",)}


class Use(NamedTuple):
    """A use, and the results by which its plan is chosen.

    Attributes:
        images: What is shown to the model.
        task: The task, or the group of tasks, of `foveate bench accuracy`.
        budget: The share of tokens.
        sites: Where the recommended method may act.
    """

    images: str
    task: str
    budget: str
    sites: tuple[str, ...]


GENERAL = Use("general", "all", "25%", ("pre_llm",))
TEXT_HEAVY = Use("text-heavy: documents, screens, signs", "group:reading", "50%", ("pre_llm",))
AGGRESSIVE = Use("aggressive", "all", "10%", ("pre_llm", "decoder"))


def start_here(root: Path) -> str:
    """The most accurate plan for each use, with random tokens and a smaller image at the same budget."""
    results = runs(root)
    lines = []
    for use in (GENERAL, TEXT_HEAVY, AGGRESSIVE):
        measured = complete_plans(results, use.task, use.budget)
        best = recommended(measured, use.sites)[0]
        plans = [best, *(f"{name}:{use.budget}" for name in (*CONTROLS[_site(best)][:1], "downsample"))]
        lines.append([use.images, f"`{best}`", *(f"{mean(measured[plan]):.0%}" for plan in plans)])
    return table(["images", "plan", "relative accuracy", "random tokens", "smaller image"], lines)


def general(root: Path) -> str:
    """Every task at 25 %."""
    return _choice(root, GENERAL)


def text_heavy(root: Path) -> str:
    """Reading at 50 %, where small text survives."""
    return _choice(root, TEXT_HEAVY)


def aggressive(root: Path) -> str:
    """Every task at 10 %."""
    return _choice(root, AGGRESSIVE)


def _choice(root: Path, use: Use) -> str:
    """The plans with the highest relative accuracy, averaged over all models, and the baselines."""
    measured = complete_plans(runs(root), use.task, use.budget)
    if not measured:
        return "*Not measured yet.*"
    models = list(next(iter(measured.values())))
    lines = []
    for site, count in SHOWN.items():
        plans = recommended(measured, (site,))[:count]
        for plan in plans + [plan for plan in measured if _name(plan) in CONTROLS[site]]:
            shown = f"*{plan}*" if _name(plan) in BASELINES else f"[`{plan}`](methods/{_name(plan)}.md)"
            by_model = [f"{row['relative']:.0%}" for row in measured[plan].values()]
            lines.append([shown, SITES[site][0].lower(), *by_model, f"**{mean(measured[plan]):.0%}**"])
    return table(["plan", "acts", *(Path(model).name for model in models), "mean"], lines)


def complete_plans(results: list[Row], task: str, budget: str) -> dict[str, dict[str, Row]]:
    """Rows of every plan by model, for plans that were measured on all models."""
    rows = [row for run in results for row in run["rows"] if row["task"] == task and row["relative"] is not None]
    models = dict.fromkeys(row["model"] for row in rows)
    plans: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row["budget"] == budget:
            plans.setdefault(row["plan"], {})[row["model"]] = row
    ordered = {plan: {model: rows[model] for model in models if model in rows} for plan, rows in plans.items()}
    return {plan: by_model for plan, by_model in ordered.items() if len(by_model) == len(models)}


def recommended(measured: dict[str, dict[str, Row]], sites: tuple[str, ...]) -> list[str]:
    """Plans of methods that act at these sites, need no training and remove tokens; the most accurate first."""
    possible = {entry.name for entry in gallery() if not entry.trained and entry.site in sites} - set(BASELINES)
    plans = [
        plan
        for plan, by_model in measured.items()
        if _name(plan) in possible and not any(map(inert, by_model.values()))
    ]
    return sorted(plans, key=lambda plan: -mean(measured[plan]))


def mean(by_model: dict[str, Row]) -> float:
    """Relative accuracy, averaged over models."""
    return fmean(row["relative"] for row in by_model.values())


def _site(plan: str) -> str:
    return next(str(entry.site) for entry in gallery() if entry.name == _name(plan))


def _name(plan: str) -> str:
    return plan.split(":")[0].split("(")[0]
