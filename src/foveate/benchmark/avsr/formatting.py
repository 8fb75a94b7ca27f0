"""Tables and plots of word error, and of the share of sound in what is kept of a pool, over noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from foveate.core.errors import FoveateError
from foveate.core.files import atomic_write

Row = dict[str, Any]
#: Lines of rates, or of shares of a pool.
_STYLES = ("-", "--", ":", "-.")
#: Most lines of a plot that shows their intervals.
_MOST_BANDS = 9


def _pooled(row: Row) -> bool:
    """Whether sound and lips are one pool."""
    return "ratio" in row


def label(row: Row) -> str:
    """Name of a row's system with its rates, or its share of the pool."""
    if _pooled(row):
        kept = "all" if row["ratio"] == 1 else f"{100 * row['ratio']:g} %"
        return f"{row['system']}: {kept}{', random' if row['random'] else ''}"
    named = [f"{name} {row[name]}" for name in ("audio", "video") if row[name] is not None]
    kind = "llama-avsr" if row["system"].startswith(("audio", "video")) else row["system"]
    return f"{kind}: {', '.join(named)}"


def table(document: dict[str, Any], pooled: bool | None = None) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a result as text: word error in percent by level of noise.

    Args:
        document: The result.
        pooled: Only systems with one pool of sound and lips, or only the others; None: all.
    """
    rows = [row for row in document["rows"] if pooled is None or _pooled(row) is pooled]
    return _table(document, rows, lambda row: row["wer"])


def sound_table(document: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows as text: share of sound, in percent, in what is kept of the pool by the scores."""
    return _table(document, _chosen(document["rows"]), lambda row: row["sound"]["share"])


def _chosen(rows: Sequence[Row]) -> list[Row]:
    """Rows in which scores decided what is kept of a pool."""
    return [row for row in rows if _pooled(row) and row["ratio"] < 1 and not row["random"]]


def _table(
    document: dict[str, Any], rows: Sequence[Row], value: Callable[[Row], float]
) -> tuple[list[str], list[list[str]]]:
    snrs = document["settings"]["snrs"]
    header = ["system", "tokens", *("clean" if snr is None else f"{snr:g} dB" for snr in snrs)]
    lines: dict[str, dict[Any, Row]] = {}
    for row in rows:
        lines.setdefault(label(row), {})[row["snr"]] = row
    return header, [
        [
            name,
            "+".join(str(count) for count in next(iter(cells.values()))["tokens"].values() if count is not None),
            *(f"{100 * value(cells[snr]):.1f}" if snr in cells else "" for snr in snrs),
        ]
        for name, cells in lines.items()
    ]


def _group(row: Row) -> str:
    """What lines of one colour have in common: the system, and its modalities."""
    if _pooled(row):
        return row["system"]
    return " ".join([label(row).partition(":")[0], *(name for name in ("audio", "video") if row[name])])


def _variant(row: Row) -> tuple[Any, ...]:
    """What lines of one style have in common: rates, or the share of the pool."""
    return (row["ratio"],) if _pooled(row) else (row["audio"], row["video"])


def _word_error(row: Row) -> list[float]:
    return [row["wer"], row["low"], row["high"]]


def _sound(row: Row) -> list[float]:
    return list(row["sound"].values())


def _plot(
    axes: Any,
    rows: Sequence[Row],
    related: Sequence[Row],
    snrs: Sequence[float | None],
    values: Callable[[Row], list[float]],
) -> None:
    """Plot rows of several systems, a colour each, at several rates or shares, a style of line each.

    Intervals are drawn where there are few lines.

    Args:
        axes: Of matplotlib.
        rows: What to plot.
        related: Rows with which colours and styles are shared.
        snrs: Levels of noise.
        values: From a row to a value and the ends of its interval.
    """
    groups = list(dict.fromkeys(map(_group, related)))
    variants = list(dict.fromkeys(map(_variant, related)))
    names = list(dict.fromkeys(map(label, rows)))
    for name in names:
        line = {row["snr"]: row for row in rows if label(row) == name}
        first = next(iter(line.values()))
        color = f"C{groups.index(_group(first))}"
        style = _STYLES[variants.index(_variant(first)) % len(_STYLES)]
        places = [place for place, snr in enumerate(snrs) if snr in line]
        points = 100 * np.array([values(line[snrs[place]]) for place in places])
        axes.plot(places, points[:, 0], style, marker="o", markersize=3, label=name, color=color)
        if len(names) <= _MOST_BANDS:
            axes.fill_between(places, points[:, 1], points[:, 2], alpha=0.08, color=color)
    axes.set_xticks(range(len(snrs)), ["clean" if snr is None else f"{snr:g}" for snr in snrs])
    axes.set_xlabel("signal-to-noise ratio (dB)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.12))


def draw(document: dict[str, Any], path: Path) -> None:
    """Plot word error over the level of noise, one line per system and rates, with intervals.

    Sound alone rises to many times the error of both, which have a plot of their own. So have systems with one pool,
    for which another plot shows the share of sound in what is kept.

    Raises:
        FoveateError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise FoveateError("the plot needs matplotlib; install it with `pip install foveate[bench]`.") from error
    of_rates = [row for row in document["rows"] if not _pooled(row)]
    both = [row for row in of_rates if row["audio"] and row["video"]]
    alone = [row for row in of_rates if not (row["audio"] and row["video"])]
    pooled = [row for row in document["rows"] if _pooled(row) and not row["random"]]
    panels = [
        panel
        for panel in (
            ("sound or lips", "word error (%)", alone, alone, _word_error),
            ("sound and lips", "word error (%)", both, both, _word_error),
            ("one pool of sound and lips", "word error (%)", pooled, pooled, _word_error),
            ("what is kept of the pool", "share of sound (%)", _chosen(pooled), pooled, _sound),
        )
        if panel[2]
    ]
    columns = min(len(panels), 2)
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(6 * columns, 6 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(lines, columns, squeeze=False).flat
    for axes, (title, axis, rows, related, values) in zip(all_axes, panels, strict=False):
        _plot(axes, rows, related, document["settings"]["snrs"], values)
        axes.set_title(title, fontsize=10)
        axes.set_ylabel(axis)
    for axes in list(all_axes)[len(panels) :]:
        axes.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial:
        figure.savefig(partial, dpi=110, format="png")
