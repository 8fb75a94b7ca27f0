"""Accuracy tables, from `benchmarks/results/accuracy-*.json` and `leaders-*.json`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

from foveate.benchmark.results import INERT, inert, read_results
from foveate.core.full_model import FULL_MODEL

BASELINES = ("random", "random-decoder", "downsample")
Row = dict[str, Any]


def runs(root: Path, kind: str = "accuracy") -> list[Row]:
    """Every committed result of a kind; by default those of `foveate bench accuracy`."""
    paths = sorted((root / "benchmarks/results").glob(f"{kind}-*.json"))
    return [read_results(path) | {"path": path.relative_to(root)} for path in paths]


def full(root: Path) -> str:
    """Every plan, grouped by budget."""
    results = runs(root)
    parts = _budgets(results)
    made = _commands(results)
    impossible: dict[str, None] = {}
    for run in results:
        for line in run["impossible"]:
            impossible[f"{line['plan'].split(':')[0]}, {_name(line['model'])}: {line['reason']}"] = None
    if impossible:
        parts.append("## Not supported\n\n" + "\n".join(f"- {line}" for line in impossible))
    return "\n\n".join([*parts, "## Commands\n\n" + made]) if parts else "*Nothing has been measured yet.*"


def leaders(root: Path) -> str:
    """The plans that were asked more questions."""
    results = runs(root, "leaders")
    if not results:
        return "*Nothing has been measured yet.*"
    questions = sorted({row["count"] for run in results for row in run["rows"] if row["task"] == "all"})
    made = f"Questions per model: {', '.join(f'{count:,}' for count in questions)}."
    return "\n\n".join([*_budgets(results, "###"), made, _commands(results)])


def _budgets(results: list[Row], heading: str = "##") -> list[str]:
    """A table for every budget, under headings of one level."""
    models, parts = _models(results), []
    budgets = dict.fromkeys(row["budget"] for run in results for row in run["rows"] if row["plan"] != FULL_MODEL)
    for budget in sorted(budgets, key=lambda text: (text is None, _size(text))):
        by_plan = _by_plan(results, budget)
        ordered = sorted(by_plan, key=lambda plan: (_inert(by_plan[plan], any), -_mean(by_plan[plan])))
        title = "Methods without a budget" if budget is None else f"{budget} of the tokens"
        parts.append(f"{heading} {title}\n\n{_table(models, results, [(plan, by_plan[plan]) for plan in ordered])}")
    return parts


def _commands(results: list[Row]) -> str:
    return "\n".join(f"- `{run['path']}`: `{run['command']}`, {run['hardware']['cpu']}" for run in results)


def tasks(root: Path) -> str:
    """The accuracy of the full models, by task."""
    results = runs(root)
    models = _models(results)
    rows: dict[str, dict[str, Row]] = {}
    for run in results:
        for row in run["rows"]:
            if row["plan"] == FULL_MODEL and ":" not in row["task"]:
                rows.setdefault(row["task"], {})[row["model"]] = row
    header = ["task", "questions", "most frequent answer", *map(_name, models)]
    lines = []
    for task, by_model in rows.items():
        one = next(iter(by_model.values()))
        cells = [_percent(by_model[model]["accuracy"]) if model in by_model else "" for model in models]
        lines.append([task.replace("_", " "), f"{one['count']:,}", _percent(one["majority"]), *cells])
    return _markdown(header, lines) if lines else "*Nothing has been measured yet.*"


def groups(root: Path) -> str:
    """Relative accuracy with random tokens, for every kind of task that the full model has learned."""
    kinds: dict[tuple[str, str], dict[str, float]] = {}
    for run in runs(root):
        rows = [row for row in run["rows"] if row["task"].startswith("group:")]
        learned = {
            (row["model"], row["task"])
            for row in rows
            if row["plan"] == FULL_MODEL and row["accuracy"] > row["majority"]
        }
        for row in rows:
            if row["plan"].startswith("random:") and (row["model"], row["task"]) in learned:
                shares = kinds.setdefault((row["model"], row["budget"]), {})
                shares[row["task"].removeprefix("group:")] = row["relative"]
    columns = list(dict.fromkeys(name for shares in kinds.values() for name in shares))
    lines = [
        [_name(model), budget, *(_percent(shares[name]) if name in shares else "" for name in columns)]
        for (model, budget), shares in kinds.items()
    ]
    return _markdown(["model", "random tokens", *columns], lines) if lines else "*Nothing has been measured yet.*"


def _by_plan(results: list[Row], budget: str | None) -> dict[str, dict[str, Row]]:
    by_plan: dict[str, dict[str, Row]] = {}
    for run in results:
        for row in run["rows"]:
            if row["task"] == "all" and row["budget"] == budget and row["plan"] != FULL_MODEL:
                by_plan.setdefault(row["plan"], {})[row["model"]] = row
    return by_plan


def _models(results: list[Row]) -> list[str]:
    return list(dict.fromkeys(row["model"] for run in results for row in run["rows"]))


def _baseline(plan: str) -> bool:
    return plan.split(":")[0] in BASELINES


def _inert(rows: dict[str, Row], models: Callable[[Iterable[bool]], bool] = all) -> bool:
    """Whether a plan dropped no tokens on `all` models or on `any`; then its accuracy says nothing about the method."""
    return models(map(inert, rows.values()))


def _mean(rows: dict[str, Row]) -> float:
    return fmean(row["relative"] or 0 for row in rows.values())


def _size(budget: str | None) -> float:
    return float(budget.rstrip("%")) if budget else 0


def _name(model: str) -> str:
    return Path(model).name


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def _table(models: list[str], results: list[Row], plans: list[tuple[str, dict[str, Row]]]) -> str:
    rows = [row for run in results for row in run["rows"] if row["task"] == "all"]
    full_model = {row["model"]: row for row in rows if row["plan"] == FULL_MODEL}
    header = ["plan", *(f"{_name(model)}: relative" for model in models), "agreement"]
    rows_full = [full_model[model] for model in models]
    cells_full = [
        f"100 % (accuracy {_percent(row['accuracy'])}), {row['tokens_kept']:,.0f} tokens" for row in rows_full
    ]
    lines = [[FULL_MODEL, *cells_full, "100 %"]]
    for plan, rows in plans:
        cells = []
        for model in models:
            row = rows.get(model)
            if row is None or row["relative"] is None:
                cells.append("")
                continue
            low, high = _percent(row["relative_low"]), _percent(row["relative_high"])
            tokens = "all tokens" if inert(row) else f"{row['tokens_kept']:,.0f} tokens"
            cells.append(f"**{_percent(row['relative'])}** ({low} to {high}), {tokens}")
        name = f"*{plan}*" if _baseline(plan) else f"`{plan}`"
        if _inert(rows):
            name += f" ({INERT})"
        lines.append([name, *cells, _percent(fmean(row["agreement"] for row in rows.values()))])
    return _markdown(header, lines)


def _markdown(header: list[str], lines: list[list[str]]) -> str:
    rows = [header, ["---", *["---:"] * (len(header) - 1)], *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
