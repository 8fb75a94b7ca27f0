"""Rendering of charts as SVG and as PNG."""

from __future__ import annotations

import io
import warnings
from typing import Any

from foveate.core.errors import FoveateError
from foveate.core.full_model import FULL_MODEL
from foveate.report.charts import HEIGHT, LETTER, LETTER_WIDTH, MARGINS, WIDTH, Chart, Label
from foveate.report.grouping import GROUPS
from foveate.report.html import tag, text

#: Half the size of a mark, in units.
_R = 4.6
#: Outlines of marks by their matplotlib names, around 0, 0; a circle is none of these.
_SHAPES = {
    "s": "M-4-4H4V4H-4z",
    "^": "M0-5L5 4H-5z",
    "v": "M0 5L5-4H-5z",
    "D": "M0-5.6L5.6 0 0 5.6-5.6 0z",
    "X": "M-5-3L-3-5 0-2 3-5 5-3 2 0 5 3 3 5 0 2-3 5-5 3-2 0z",
    "P": "M-2-5H2V-2H5V2H2V5H-2V2H-5V-2H-2z",
    "*": "M0-6.5L1.9-2 6.6-1.8 2.9 1.1 4.2 5.8 0 3.1-4.2 5.8-2.9 1.1-6.6-1.8-1.9-2z",
}


def svg(chart: Chart, chosen: str = "") -> str:
    """Render the chart as SVG markup.

    Args:
        chart: What to draw.
        chosen: Highlighted method; other plans are small and grey, and no plan is labelled.
    """
    parts = [_axes(chart)]
    full_model = [point for point in chart.points if point.plan == FULL_MODEL]
    if full_model:
        y = chart.place(chart.points[0].x, full_model[0].y)[1]
        parts.append(f'<path class="ref" d="M{MARGINS[0]} {y:.1f}H{WIDTH - MARGINS[2]}"/>')
    front = chart.front
    places = [chart.place(point.x, point.y) for point in front]
    steps = "".join(f"H{x:.1f}V{y:.1f}" for x, y in places[1:])
    parts.append(f'<path class="front" d="M{places[0][0]:.1f} {places[0][1]:.1f}{steps}"/>')
    shown = [point for point in chart.points if chosen in ("", point.method)]
    if chosen:  # one path for all others: many pages show them
        others = (chart.place(point.x, point.y) for point in chart.points if point.method != chosen)
        parts.append(f'<path class="others" d="{"".join(f"M{x:.1f} {y:.1f}h0" for x, y in others)}"/>')
    for point in sorted(shown, key=lambda point: (point in front, point.plan)):
        x, y = chart.place(point.x, point.y)
        inner = tag("title", text(point.description)) + _mark(point.group.marker)
        if chosen or point in front:
            top, bottom = (chart.place(point.x, end)[1] - y for end in (point.high, point.low))
            limit = (MARGINS[1] - y, HEIGHT - MARGINS[3] - y)
            inner = f'<path class="ci" d="M0 {max(top, limit[0]):.1f}V{min(bottom, limit[1]):.1f}"/>' + inner
        parts.append(
            tag(
                "g",
                inner,
                class_=f"p g-{point.group.key}" + " on-front" * (point in front),
                transform=f"translate({x:.1f} {y:.1f})",
                data_group=None if chosen else point.group.key,
                data_budget=None if chosen else point.budget,
            )
        )
    if not chosen:
        parts += [_label(label, point.group.key) for label, point in zip(chart.labels, front, strict=True)]
    return tag("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=_description(chart))


def _description(chart: Chart) -> str:
    """Describe the chart in words for screen readers."""
    return f"{chart.title}. Pareto front, by increasing cost: {'; '.join(point.description for point in chart.front)}."


def _mark(marker: str) -> str:
    return f'<path d="{_SHAPES[marker]}"/>' if marker in _SHAPES else f'<circle r="{_R}"/>'


def swatch(marker: str) -> str:
    """Render a marker for a legend."""
    return f'<svg class="swatch" viewBox="-8 -8 16 16" aria-hidden="true">{_mark(marker)}</svg>'


def _axes(chart: Chart) -> str:
    left, top, right, below = MARGINS
    parts = []
    for tick in chart.y_ticks:
        y = chart.place(chart.points[0].x, tick)[1]
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{WIDTH - right}"/>')
        parts.append(f'<text x="{left - 7}" y="{y + 4:.1f}" text-anchor="end">{_percent(tick, chart)}</text>')
    for tick in chart.x_ticks:
        x = chart.place(tick, 0.5)[0]
        parts.append(f'<path class="grid" d="M{x:.1f} {top}V{HEIGHT - below}"/>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - below + 16}" text-anchor="middle">{chart.x_text(tick)}</text>')
    middle = (left + WIDTH - right) / 2
    parts.append(f'<text x="{middle:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{text(chart.x_label)}</text>')
    return tag("g", *parts, class_="axes")


def _percent(tick: float, chart: Chart) -> str:
    ticks = chart.y_ticks
    fine = len(ticks) > 1 and ticks[1] - ticks[0] < 0.0099
    return f"{100 * tick:.1f}%" if fine else f"{100 * tick:.0f}%"


def _label(label: Label, group: str) -> str:
    line = ""
    if label.far:
        x, y = _lead(label)
        line = f'<path class="lead" d="M{label.mark[0]:.1f} {label.mark[1]:.1f}L{x:.1f} {y:.1f}"/>'
    place = f'x="{label.x:.1f}" y="{label.y + 0.35 * LETTER:.1f}"'
    return f'<g class="label" data-group="{group}">{line}<text {place}>{text(label.text)}</text></g>'


def _lead(label: Label) -> tuple[float, float]:
    """Point where a leader line meets its label: the corner or side nearest to the marker."""
    x = min(max(label.mark[0], label.x), label.x + LETTER_WIDTH * len(label.text))
    return x, label.y + (0.5 * LETTER if label.mark[1] > label.y else -0.5 * LETTER)


def png(chart: Chart) -> bytes:
    """Render the chart as a PNG file.

    Raises:
        FoveateError: matplotlib is missing.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
        from matplotlib.patheffects import withStroke
    except ImportError as error:
        raise FoveateError("plots need matplotlib: pip install 'foveate[bench]'.") from error
    shown = [group for group in GROUPS.values() if any(point.group == group for point in chart.points)]
    above, legend = 24, 15 * -(-len(shown) // 3) + 2
    wide, tall = WIDTH, HEIGHT + above + legend
    left, top, right, below = MARGINS
    with mpl.rc_context({"font.size": 9.5, "axes.edgecolor": "#8c959f", "svg.hashsalt": "foveate"}):
        figure = Figure(figsize=(wide / 72, tall / 72))
        box = (left / wide, (legend + below) / tall, (wide - left - right) / wide, (HEIGHT - top - below) / tall)
        axes: Any = figure.add_axes(box)
        figure.text(left / wide, 1 - 15 / tall, _plain(chart.title[:60]), fontsize=11, fontweight="bold")
        if chart.log:
            axes.set_xscale("log")
        axes.set(xlim=chart.limits[0], ylim=chart.limits[1])
        axes.set_xlabel(chart.x_label, color="#57606a")
        axes.set_xticks(chart.x_ticks, [chart.x_text(tick) for tick in chart.x_ticks])
        axes.set_xticks([], minor=True)
        axes.set_yticks(chart.y_ticks, [_percent(tick, chart) for tick in chart.y_ticks])
        axes.tick_params(length=0, labelcolor="#57606a")
        axes.grid(color="#e6e8eb", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        _marks(axes, chart, [withStroke(linewidth=2.5, foreground="white")])
        handles = [
            axes.plot([], [], group.marker, color=group.colour, markersize=6, label=group.title)[0] for group in shown
        ]
        figure.legend(handles=handles, loc="lower center", ncols=min(3, len(shown)), frameon=False, fontsize=8.5,
                      handletextpad=0.2, columnspacing=1.2, borderaxespad=0.2)  # fmt: skip
        written = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")  # names of models may have letters that the font lacks
            figure.savefig(written, format="png", dpi=170, metadata={"Software": None})
    return written.getvalue()


def _marks(axes: Any, chart: Chart, halo: Any) -> None:
    front = chart.front
    axes.step([p.x for p in front], [p.y for p in front], where="post", color="#24292f", linewidth=1.1, zorder=3)
    for point in chart.points:
        first = point in front
        if first:
            axes.plot([point.x] * 2, [point.low, point.high], color=point.group.colour, linewidth=0.9, alpha=0.6)
        if point.plan == FULL_MODEL:
            axes.axhline(point.y, color="#8c959f", linewidth=0.9, linestyle=(0, (4, 3)))
        axes.scatter(
            point.x,
            point.y,
            s=42 if first else 30,
            marker=point.group.marker,
            color=point.group.colour,
            edgecolors="#24292f" if first else "white",
            linewidths=0.9 if first else 0.5,
            zorder=5 if first else 4,
        )
    for label in chart.labels:
        unit = _unit(label.x, label.y)
        if label.far:
            axes.plot(*zip(_unit(*label.mark), _unit(*_lead(label)), strict=True), transform=axes.transAxes,
                      color="#8c959f", linewidth=0.7, zorder=4)  # fmt: skip
        axes.text(*unit, _plain(label.text), transform=axes.transAxes, fontsize=9, va="center", zorder=6,
                  path_effects=halo)  # fmt: skip


def _unit(x: float, y: float) -> tuple[float, float]:
    """Convert a position in units to fractions of the axes, from below."""
    left, top, right, below = MARGINS
    return (x - left) / (WIDTH - left - right), 1 - (y - top) / (HEIGHT - top - below)


def _plain(value: str) -> str:
    """Escape a text so that matplotlib finds no formula in it."""
    return value.replace("$", r"\$")
