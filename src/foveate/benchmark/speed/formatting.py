"""Tables and plots of speed results, including files of the earlier `foveate bench selection`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foveate.benchmark import profiling
from foveate.benchmark.budgets import CONTROLS, FULL_MODEL
from foveate.benchmark.results import INERT, inert
from foveate.core.errors import FoveateError

NOTE = (
    "Tokens: those of an image that the language model works on, the mean over its layers; in older files those that "
    "it reads. TTFT, time to the first token: encoder, selection, prefill and what lies between, without preprocessing "
    "(opening, resizing and tokenising, which are the same for every plan). Speed-up: TTFT of the full model "
    "over that with the plan. Efficiency: speed-up over that of the control, as many random tokens at the same place "
    "(before the same layers, for plans inside the language model); 1 is the limit. Selection: time of choosing, and "
    "its share of the prefill with all tokens. Decode: time of one step, which writes one token for every prompt of "
    "the batch. Median of the turns. Where weights are random, cost does not depend on them."
)

#: Where the axis of efficiencies ends.
_FARTHEST = 1.2

_HEADER = (
    "model, budget",
    "plan",
    "tokens",
    "preprocess, ms",
    "encoder, ms",
    "selection, ms",
    "prefill, ms",
    "TTFT, ms",
    "decode, ms",
    "peak, MiB",
    "KV, MiB",
    "GFLOPs",
    "formula",
    "speed-up",
    "efficiency",
)
#: Columns shown in narrow terminals.
_BRIEF = ("model, budget", "plan", "tokens", "TTFT, ms", "decode, ms", "speed-up", "efficiency")


def rows_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a result in the current format, with None for what was not measured."""
    if document.get("kind") == "speed":
        return document["rows"]
    rows = []
    for row in document["rows"]:
        seconds = dict(row["seconds"])
        rows.append(
            {
                **row,
                "model": row["shape"],
                "plan": row["method"] if row["method"] == FULL_MODEL else f"{row['method']}:{row['budget']}",
                "batch": 1,
                "seconds": seconds | {"ttft": seconds.pop("total"), "preprocess": None, "decode_per_token": None},
                "spread": {"ttft": row["spread"]},
                "peak_bytes": None,
                "kv_bytes": None,
                "flops": {"counted": None, "formula": None},
                "efficiency": None if row["method"] == FULL_MODEL else row["efficiency"],
            }
        )
    return rows


def impossible_of(document: dict[str, Any]) -> list[dict[str, str]]:
    """Return the plans that could not be measured, each with "model", "plan" and "reason"."""
    return [{"model": line.get("model") or line["shape"], **line} for line in document["impossible"]]


def table(document: dict[str, Any], *, brief: bool = False) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of a result, without columns that are empty.

    Args:
        document: The content of a file.
        brief: Only the columns for narrow terminals.
    """
    lines = [_line(row) for row in rows_of(document)]
    filled = [any(line[place] for line in lines) or place < 3 for place in range(len(_HEADER))]
    filled = [
        has_values and not (brief and name not in _BRIEF) for has_values, name in zip(filled, _HEADER, strict=True)
    ]
    kept = [place for place, has_values in enumerate(filled) if has_values]
    return [_HEADER[place] for place in kept], [[line[place] for place in kept] for line in lines]


def _line(row: dict[str, Any]) -> list[str]:
    seconds = row["seconds"]
    batch = "" if row["batch"] == 1 else f", batch {row['batch']}"
    where = ", ".join(filter(None, (row["model"], row["budget"])))
    return [
        where + batch,
        row["plan"] if any(mark in row["plan"] for mark in "+(@") else row["method"],
        _tokens(row),
        _milliseconds(seconds["preprocess"]),
        _milliseconds(seconds["encoder"]),
        f"{_milliseconds(seconds['selection'], 2)} ({row['selection_of_prefill']:.2%})",
        _milliseconds(seconds["prefill"]),
        _milliseconds(seconds["ttft"]),
        _milliseconds(seconds["decode_per_token"], 1),
        _divided(row["peak_bytes"], 2**20),
        _divided(row["kv_bytes"], 2**20, 1),
        _divided(row["flops"]["counted"], 1e9),
        _divided(row["flops"]["formula"], 1e9),
        f"{row['speed_up']:.2f}",
        "" if row["efficiency"] is None else f"{row['efficiency']:.3f}",
    ]


def _tokens(row: dict[str, Any]) -> str:
    """Format the number of image tokens in the language model, averaged over its layers where that is known."""
    mean = row.get("tokens_mean")
    text = f"{row['tokens']:,}" if mean is None else f"{mean:,.0f}"
    return text + (f" ({INERT})" if inert(row) else "")


def _milliseconds(seconds: float | None, digits: int = 0) -> str:
    if seconds is None:
        return ""
    return f"{1000 * seconds:,.{digits if seconds >= 0.01 or digits else 1}f}"


def _divided(value: float | None, unit: float, digits: int = 0) -> str:
    return "" if value is None else f"{value / unit:,.{digits}f}"


def unsteady(document: dict[str, Any]) -> str:
    """Return `profiling.unsteady` of the times to the first token."""
    return profiling.unsteady(
        (f"{row['plan']} of {row['model']}", row["spread"]["ttft"]["all"]) for row in rows_of(document)
    )


def plot(document: dict[str, Any], path: Path) -> None:
    """Plot efficiency and speed-up of every method: one column per model and batch, one marker per budget.

    Raises:
        FoveateError: matplotlib is missing, or there is nothing to draw.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise FoveateError("a plot needs matplotlib: pip install 'foveate[bench]'.") from error
    rows = [row for row in rows_of(document) if row["method"] != FULL_MODEL]
    if not rows:
        raise FoveateError("there is nothing to draw: no plan was measured.")
    columns = list(dict.fromkeys((row["model"], row["batch"]) for row in rows))
    names = sorted({row["method"] for row in rows} - set(CONTROLS)) + [
        name for name in CONTROLS if any(row["method"] == name for row in rows)
    ]
    with mpl.rc_context({"font.size": 9}):
        size = (4.2 * len(columns) + 1.5, 2 * (0.26 * len(names) + 1.6))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(2, len(columns), sharey=True, squeeze=False)
        for place, (model, batch) in enumerate(columns):
            column = [row for row in rows if (row["model"], row["batch"]) == (model, batch)]
            title = model if batch == 1 else f"{model}, batch {batch}"
            _panel(axes[0][place], column, names, "efficiency")
            axes[0][place].axvline(0.95, color="0.6", linewidth=0.8, linestyle="--")
            _shorten(axes[0][place], column, names)
            axes[0][place].set(title=title, xlabel="efficiency: speed-up / speed-up of random tokens")
            _panel(axes[1][place], column, names, "speed_up")
            axes[1][place].set(title=title, xlabel="speed-up of the first token over the full model")
        axes[0][0].invert_yaxis()
        figure.savefig(path, dpi=160)


def _shorten(axis: Any, rows: list[dict[str, Any]], names: list[str]) -> None:
    """Limit the efficiency axis so that small differences stay visible; values beyond are written as text."""
    for place, name in enumerate(names):
        values = [row["efficiency"] for row in rows if row["method"] == name and row["efficiency"] is not None]
        beyond = sorted(value for value in values if value > _FARTHEST)
        if beyond:
            text = " ".join(f"{value:.1f}" for value in beyond)
            axis.text(_FARTHEST, place, f"{text} →", ha="right", va="center", fontsize=8)
    low, high = axis.get_xlim()
    axis.set_xlim(low if high <= _FARTHEST else min(low, 0.9), min(high, _FARTHEST))


def _panel(axis: Any, rows: list[dict[str, Any]], names: list[str], value: str) -> None:
    """Plot one value, with one colour and marker per budget."""
    for number, budget in enumerate(dict.fromkeys(row["budget"] for row in rows)):
        by_method = {row["method"]: row[value] for row in rows if row["budget"] == budget and row[value] is not None}
        places = [(by_method[name], place) for place, name in enumerate(names) if name in by_method]
        if not places:
            continue
        label = budget if budget.endswith("%") else f"{budget} tokens"
        axis.scatter(*zip(*places, strict=True), s=22, label=label, zorder=3, alpha=0.85, marker="os^"[number % 3])
    axis.axvline(1, color="0.2", linewidth=1)
    axis.set_yticks(range(len(names)), names)
    axis.grid(axis="y", color="0.92")
    # Below the label of the axis, however many methods there are: the distance is in heights of the type.
    axis.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=4.5, ncols=3)
