"""Tables of the report."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from foveate.benchmark.results import INERT, inert
from foveate.report.charts import count
from foveate.report.grouping import group_of
from foveate.report.html import Cell, Column, Row, table
from foveate.report.results import ALL, FULL_MODEL, GROUP, Results

Link = Callable[[str], str]
#: Text of cells without a measurement.
NONE = Cell("–")
#: A column that is hidden where one model is shown.
MODEL = Column("model", number=False, class_="m")
#: As many equally good plans are named.
NAMED = 4
_MIB = 2**20


def percent(value: float | None, digits: int = 1) -> str:
    """Format a share in percent."""
    return "–" if value is None else f"{100 * value:.{digits}f}%"


def overall(results: Results) -> dict[str, list[dict[str, Any]]]:
    """Select rows over all tasks, by model."""
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in results.accuracy:
        if row["task"] == ALL:
            rows[row["model"]].append(row)
    for model_rows in rows.values():
        model_rows.sort(key=lambda row: (by_size(row["budget"]), -row["accuracy"]))
    return rows


def by_size(budget: str) -> tuple[bool, float, str]:
    """Sort key of budgets: numbers before fractions, the smallest first."""
    number = re.match(r"\d+(\.\d+)?", budget)
    return budget.endswith("%"), float(number[0]) if number else 0.0, budget


def _data(row: Mapping[str, Any]) -> dict[str, str]:
    return {"model": row["model"], "budget": row["budget"], "group": group_of(row["method"]).key}


def _kind(row: Mapping[str, Any]) -> str:
    return "base" if group_of(row["method"]).key in ("full-model", "control") else ""


def _plan(row: Mapping[str, Any], link: Link) -> Cell:
    return Cell(row["plan"], link=link(row["method"]), group=group_of(row["method"]).key)


def _between(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{100 * low:.1f}–{100 * high:.1f}"


def _share(value: float | None, small: str = "", tint: int = 0) -> Cell:
    return NONE if value is None else Cell(percent(value), value, small, tint=tint)


def tint(value: float | None, reference: float | None) -> int:
    """Return the colour strength of a value relative to the full model; losing half gives the strongest."""
    if value is None or not reference:
        return 0
    lost = 1 - value / reference
    return round(max(-40.0, min(100 * lost, 50.0)))


def _drop_empty(columns: list[Column], rows: list[Row], fixed: int) -> tuple[list[Column], list[Row]]:
    """Drop empty columns; the first `fixed` are kept."""
    kept = [n for n in range(len(columns)) if n < fixed or any(row.cells[n].text not in ("–", "") for row in rows)]
    return [columns[n] for n in kept], [Row([row.cells[n] for n in kept], row.data, row.kind) for row in rows]


def best(results: Results, link: Link) -> str:
    """Table of the most accurate plan for every model and budget, with controls and statistical ties."""
    columns = [
        MODEL,
        Column("budget", "tokens of an image, or a fraction of them", number=False),
        Column("most accurate", number=False),
        Column("relative accuracy", "with a 95 % bootstrap interval over the same questions"),
        Column("random tokens", "relative accuracy of tokens drawn at random"),
        Column("smaller image", "relative accuracy of the image down-sampled to as many tokens"),
        Column("speed-up", "time to the first token of the full model over that of the plan"),
        Column("as good", "plans at this budget whose interval reaches the best one", number=False),
    ]
    rows = []
    speed_ups = {(row["model"], row["plan"]): row["speed_up"] for row in reversed(results.speed) if row["batch"] == 1}
    for model, model_rows in overall(results).items():
        full_model = next((row["accuracy"] for row in model_rows if row["plan"] == FULL_MODEL), None)
        for budget in dict.fromkeys(row["budget"] for row in model_rows if row["budget"]):
            at_budget = [
                row for row in model_rows if row["budget"] == budget and row["plan"] != FULL_MODEL and not inert(row)
            ]
            if not at_budget:
                continue
            by_method = {row["method"]: row for row in at_budget}
            first = max(at_budget, key=lambda row: row["accuracy"])
            equal = [row for row in at_budget if row is not first and _reaches(row, first)]
            equal.sort(key=lambda row: -row["accuracy"])
            more = f" and {len(equal) - NAMED} more" if len(equal) > NAMED else ""
            speed_up = speed_ups.get((model, first["plan"]))
            rows.append(
                Row(
                    [
                        Cell(model),
                        Cell(budget),
                        _plan(first, link),
                        _relative(first, full_model),
                        *(
                            _relative(by_method[name], full_model) if name in by_method else NONE
                            for name in ("random", "downsample")
                        ),
                        _speed_up(speed_up),
                        Cell((", ".join(row["method"] for row in equal[:NAMED]) + more) or "none"),
                    ],
                    {"model": model, "budget": budget},
                )
            )
    if not rows:
        return ""
    return table("The most accurate plan of every model and budget", *_drop_empty(columns, rows, 3), class_="best")


def _relative(row: Mapping[str, Any], full_model: float | None) -> Cell:
    value = row["relative"]
    if value is None and full_model:
        value = row["accuracy"] / full_model
    return _share(value, _between(row["relative_low"], row["relative_high"]))


def _reaches(row: Mapping[str, Any], first: Mapping[str, Any]) -> bool:
    """Whether a plan's interval reaches the accuracy of the best one."""
    if row["relative_high"] is not None and first["relative"] is not None:
        return row["relative_high"] >= first["relative"]
    return row["high"] >= first["accuracy"]


def accuracy(
    results: Results, link: Link, *, caption: str = "Accuracy over all tasks, each task the same weight"
) -> str:
    """Table of the accuracy of every plan."""
    rows, columns = [], [
        Column("plan", number=False),
        MODEL,
        Column("tokens", "mean number of visual tokens of an item in the language model", rising=True),
        Column("accuracy", "with 95 % interval"),
        Column("relative", "accuracy relative to the full model, with paired bootstrap interval"),
        Column("agreement", "share of answers that equal those of the full model"),
        Column("difficult", "accuracy on questions that the full model answers and the smaller image does not"),
    ]  # fmt: skip
    for model, model_rows in overall(results).items():
        full_model = next((row["accuracy"] for row in model_rows if row["plan"] == FULL_MODEL), None)
        for row in model_rows:
            hard = row["difficult"]
            rows.append(
                Row(
                    [
                        _plan(row, link),
                        Cell(model),
                        Cell(count(row["tokens_kept"]), row["tokens_kept"], INERT if inert(row) else ""),
                        _share(row["accuracy"], _between(row["low"], row["high"])),
                        _relative(row, full_model),
                        _share(row["agreement"]),
                        _share(hard["accuracy"], f"of {hard['count']:g}") if hard and hard["count"] else NONE,
                    ],
                    _data(row),
                    _kind(row),
                )
            )
    return table(caption, *_drop_empty(columns, rows, 4)) if rows else ""


def breakdown(results: Results, link: Link, *, groups: bool, caption: str) -> str:
    """Table of the accuracy of every plan by task or by group of tasks, with losses tinted."""
    by_plan: dict[tuple[str, str], dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in results.accuracy:
        if row["task"] != ALL and row["task"].startswith(GROUP) == groups:
            by_plan[row["model"], row["plan"]][row["task"]] = row
    tasks = list(dict.fromkeys(task for by_task in by_plan.values() for task in by_task))
    order = {(row["model"], row["plan"]): place for place, row in enumerate(_flat(overall(results)))}
    by_plan = dict(sorted(by_plan.items(), key=lambda item: order.get(item[0], len(order))))
    columns = [Column("plan", number=False), MODEL]
    columns += [Column(name_of(task), f"accuracy of {task.removeprefix(GROUP)}") for task in tasks]
    rows = []
    for (model, plan), by_task in by_plan.items():
        full_model = by_plan.get((model, FULL_MODEL), {})
        first = next(iter(by_task.values()))
        cells = []
        for task in tasks:
            if task not in by_task:
                cells.append(NONE)
                continue
            value = by_task[task]["accuracy"]
            reference = full_model[task]["accuracy"] if task in full_model else None
            cells.append(Cell(percent(value, 0), value, tint=tint(value, reference)))
        rows.append(Row([_plan(first, link), Cell(model), *cells], _data(first), _kind(first)))
        if plan == FULL_MODEL:
            always = [by_task[task]["majority"] if task in by_task else None for task in tasks]
            if any(value is not None for value in always):
                cells = [NONE if value is None else Cell(percent(value, 0), value) for value in always]
                rows.append(Row([Cell("most frequent answer"), Cell(model), *cells], {"model": model}, "base"))
    return table(caption, columns, rows, class_="heat") if rows else ""


def _flat(rows: Mapping[str, Sequence[dict[str, Any]]]) -> Iterable[dict[str, Any]]:
    return (row for model_rows in rows.values() for row in model_rows)


def name_of(task: str) -> str:
    """Return a task's title; for a file, its name without the folder."""
    if task.endswith((".json", ".jsonl")):
        return task.replace("\\", "/").rsplit("/", 1)[-1]
    return task.removeprefix(GROUP).replace("_", " ")


def _tokens(row: Mapping[str, Any]) -> Cell:
    """Format the tokens of a speed row."""
    mean = row["tokens"] if row.get("tokens_mean") is None else row["tokens_mean"]
    return Cell(count(mean), mean, INERT if inert(row) else "")


def _ms(seconds: float | None, digits: int = 0) -> Cell:
    if seconds is None:
        return NONE
    return Cell(f"{1000 * seconds:,.{digits if seconds >= 0.01 or digits else 2}f}", seconds)


def _divided(value: float | None, unit: float, digits: int = 1) -> Cell:
    return NONE if value is None else Cell(f"{value / unit:,.{digits}f}", value)


def speed(results: Results, link: Link, *, caption: str = "What every plan costs") -> str:
    """Table of times, memory and FLOPs of every plan."""
    columns = [
        Column("plan", number=False),
        MODEL,
        Column("batch", rising=True),
        Column("device", number=False),
        Column(
            "tokens",
            "visual tokens of an image that the language model works on, the mean over its layers; in files "
            "without that, those that it reads",
            rising=True,
        ),
        Column("first token, ms", "encoder, selection and prefill; with slowest and fastest turn", rising=True),
        Column("speed-up", "time to the first token of the full model over that of the plan"),
        Column("efficiency", "time of as many random tokens over that of the plan: 1 is the limit of token selection"),
        Column("preprocess, ms", rising=True),
        Column("encoder, ms", rising=True),
        Column("selection, ms", "time of token selection, and its share of the full model's prefill", rising=True),
        Column("prefill, ms", rising=True),
        Column("decoding, ms", "per token", rising=True),
        Column("peak, MiB", "memory beyond the weights", rising=True),
        Column("cache, MiB", "keys and values after the prefill", rising=True),
        Column("GFLOPs", "counted at run time", rising=True),
    ]
    rows = []
    order = {model: place for place, model in enumerate(results.models)}
    for row in sorted(
        results.speed,
        key=lambda row: (order[row["model"]], row["batch"], by_size(row["budget"]), row["plan"] != FULL_MODEL,
                         row["seconds"]["ttft"]),
    ):  # fmt: skip
        part = row["seconds"]
        chosen = row["selection_of_prefill"]
        selection = _ms(part["selection"], 1)
        rows.append(
            Row(
                [
                    _plan(row, link),
                    Cell(row["model"]),
                    Cell(f"{row['batch']:g}", row["batch"]),
                    Cell(", ".join(filter(None, (row["device"], row["dtype"])))),
                    _tokens(row),
                    Cell(_ms(part["ttft"]).text, part["ttft"], _extremes(row)),
                    _speed_up(row["speed_up"], full_model=row["plan"] == FULL_MODEL),
                    NONE if row["efficiency"] is None else Cell(f"{row['efficiency']:.3f}", row["efficiency"]),
                    *(_ms(part[name]) for name in ("preprocess", "encoder")),
                    selection
                    if selection is NONE or chosen is None
                    else Cell(selection.text, part["selection"], f"{chosen:.1%}"),
                    *(_ms(part["prefill"]), _ms(part["decode_per_token"], 1)),
                    *(_divided(row["peak_bytes"], _MIB, 0), _divided(row["kv_bytes"], _MIB)),
                    _divided(row["flops"]["counted"] or row["flops"]["formula"], 1e9),
                ],
                _data(row),
                _kind(row),
            )
        )
    return table(caption, *_drop_empty(columns, rows, 3)) if rows else ""


def _speed_up(value: float | None, *, full_model: bool = False) -> Cell:
    """Format a speed-up; a slow-down is highlighted."""
    if value is None:
        return NONE
    slower = value < 1 and not full_model
    return Cell(f"{value:.2f}", value, "slower" if slower else "", tint=30 * slower)


def _extremes(row: Mapping[str, Any]) -> str:
    """Format the fastest and the slowest turn in milliseconds, if known."""
    spread = row["spread"] or {}
    spread = spread.get("ttft", spread)
    ends = [spread.get(name) for name in ("min", "max")] if isinstance(spread, dict) else []
    known = [f"{1000 * end:,.0f}" for end in ends if isinstance(end, (int, float))]
    return "–".join(known) if len(known) == 2 else ""


def joint(results: Results, link: Link, *, caption: str = "Fewer tokens and fewer bits together") -> str:
    """Table of token compression with quantised weights and caches, over all tasks if a file has that."""
    columns = [
        Column("plan", number=False),
        MODEL,
        Column("weights", number=False),
        Column("cache", number=False),
        Column("task", number=False),
        Column("questions"),
        Column("tokens", "mean number of visual tokens of an item in the language model", rising=True),
        Column("accuracy", "with 95 % interval"),
        Column("relative", "to the full model with full weights and cache, with 95 % interval"),
        Column("parts", "product of the relative accuracies of plan, weights and cache alone"),
        Column("seconds", rising=True),
        Column("weights, MiB", rising=True),
        Column("cache, MiB", rising=True),
    ]
    rows = []
    means = [row for row in results.joint if row["task"] == ALL]
    for row in means or results.joint:
        seconds = row["seconds"]
        if isinstance(seconds, dict):
            seconds = seconds.get("total", seconds.get("ttft"))
        rows.append(
            Row(
                [
                    _plan(row, link),
                    Cell(row["model"]),
                    Cell(row["weights"]),
                    Cell(row["cache"]),
                    Cell(name_of(row["task"])),
                    NONE if row["count"] is None else Cell(f"{row['count']:,}", row["count"]),
                    NONE
                    if row["tokens_kept"] is None
                    else Cell(count(row["tokens_kept"]), row["tokens_kept"], INERT if inert(row) else ""),
                    _share(row["accuracy"], _between(row["low"], row["high"])),
                    _share(row["relative"], _between(row["relative_low"], row["relative_high"])),
                    _share(row["parts"]),
                    NONE if seconds is None else Cell(f"{seconds:,.3g}", seconds),
                    *(_divided(row["bytes"][name], _MIB) for name in ("weights", "kv")),
                ],
                _data(row),
                _kind(row),
            )
        )
    return table(caption, *_drop_empty(columns, rows, 5)) if rows else ""


def impossible(lines: Iterable[Mapping[str, str]]) -> str:
    """Table of plans that could not be measured, with the reason."""
    columns = [Column(name, number=False) for name in ("plan", "model", "reason")]
    rows = [
        Row([Cell(line["plan"]), Cell(line["model"]), Cell(line["reason"])], {"model": line["model"]}) for line in lines
    ]
    return table("Plans that a model cannot follow", columns, rows, class_="words") if rows else ""


def plain(caption: str, titles: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Table of plain texts."""
    rows = [Row([Cell(text) for text in line]) for line in lines]
    return table(caption, [Column(title, number=False) for title in titles], rows, class_="words", sort=False)
