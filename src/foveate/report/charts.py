"""Scatter plots as plain values, drawn as SVG on pages and as PNG by matplotlib in the same geometry."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from foveate.report.grouping import Group, group_of
from foveate.report.results import ALL, FULL_MODEL, Results

#: Size of a plot and of its margins (left, top, right, bottom), in units; a unit is a point of the PNG.
WIDTH, HEIGHT, MARGINS = 420, 330, (46, 12, 14, 42)
#: Letters of labels: their height, and the mean width of one.
LETTER, LETTER_WIDTH = 11.5, 6.1
LONGEST_LABEL = 30


@dataclass(frozen=True)
class Point:
    """Accuracy and cost of one plan.

    Args:
        plan: As text.
        method: Its method.
        group: Family of it.
        budget: For the filter.
        x: Tokens or seconds.
        y: Accuracy, 0 to 1.
        low: Lower end of its interval.
        high: Upper end.
        description: Text for tooltips and screen readers.
    """

    plan: str
    method: str
    group: Group
    budget: str
    x: float
    y: float
    low: float
    high: float
    description: str


@dataclass(frozen=True)
class Label:
    """Name of a plan next to its marker: start and anchor of its middle line, in units from the upper left."""

    text: str
    x: float
    y: float
    mark: tuple[float, float]

    @property
    def far(self) -> bool:
        """Whether the label needs a leader line."""
        left, right = self.x, self.x + LETTER_WIDTH * len(self.text)
        across = max(left - self.mark[0], self.mark[0] - right, 0)
        return math.hypot(across, self.y - self.mark[1]) > 17


@dataclass(frozen=True)
class Chart:
    """Accuracy of one model's plans against their cost.

    Args:
        name: Of its file.
        model: It is about.
        title: Title above the chart.
        x_label: Below it.
        points: In any order.
        seconds: Whether x is a time.
    """

    name: str
    model: str
    title: str
    x_label: str
    points: tuple[Point, ...]
    seconds: bool = False
    _x: tuple[float, float] = field(init=False, repr=False)
    _y: tuple[float, float] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Compute axis limits with some margin around all points, and the intervals of those of the front."""
        low, high = (pick(point.x for point in self.points) for pick in (min, max))
        pad = max((high / low) ** 0.07, 1.04) if self.log else 1.0
        margin = 0 if self.log else 0.07 * (high - low) or 0.5 * high or 1
        object.__setattr__(self, "_x", (low / pad - margin, high * pad + margin))
        bottom, top = (pick(point.y for point in self.points) for pick in (min, max))
        margin = max(0.08 * (top - bottom), 0.01)
        bottom = min(bottom - margin, *(point.low - margin / 4 for point in self.front))
        top = max(top + 1.6 * margin, *(point.high + margin / 4 for point in self.front))
        object.__setattr__(self, "_y", (max(bottom, -0.02), min(top, 1.05)))

    @property
    def log(self) -> bool:
        """Whether x is logarithmic, which it is if it spans more than a factor of two."""
        xs = [point.x for point in self.points]
        return min(xs) > 0 and max(xs) > 2 * min(xs)

    @property
    def limits(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Limits of x and of y."""
        return self._x, self._y

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Convert a point to units from the upper left corner."""
        (low, high), (bottom, top) = self.limits
        across = math.log(x / low) / math.log(high / low) if self.log else (x - low) / (high - low)
        left, above, right, below = MARGINS
        return (
            left + across * (WIDTH - left - right),
            above + (top - y) / (top - bottom) * (HEIGHT - above - below),
        )

    @property
    def x_ticks(self) -> list[float]:
        """Tick values of the x axis."""
        low, high = self.limits[0]
        return _log_ticks(low, high) if self.log else _ticks(low, high)

    @property
    def y_ticks(self) -> list[float]:
        """Tick values of the y axis."""
        low, high = self.limits[1]
        return [tick for tick in _ticks(low, high) if -1e-9 <= tick <= 1 + 1e-9]

    def x_text(self, value: float) -> str:
        """Format an x value for a tick."""
        if self.seconds and self.limits[0][1] < 1:
            return f"{1000 * value:,.4g}"
        return f"{value:,.4g}"

    @property
    def front(self) -> list[Point]:
        """Plans that no other plan dominates, from the cheapest on."""
        return front(self.points)

    @property
    def labels(self) -> list[Label]:
        """Names of the plans on the front, placed with little overlap."""
        marks = [self.place(point.x, point.y) for point in self.points]
        corners = [self.place(point.x, point.y) for point in self.front]
        steps = [*zip(corners, [(b[0], a[1]) for a, b in pairwise(corners)], strict=False)]
        steps += [((b[0], a[1]), b) for a, b in pairwise(corners)]
        placed: list[tuple[float, float, float, float]] = []
        labels = []
        for point in self.front:
            equal = sum((other.x, other.y) == (point.x, point.y) for other in self.points) - 1
            text = point.plan if len(point.plan) <= LONGEST_LABEL else point.plan[: LONGEST_LABEL - 1] + "…"
            text += f" and {equal} equal" if equal else ""
            mark = self.place(point.x, point.y)
            x, y = min(_around(mark, text), key=lambda corner: _cost(corner, text, mark, marks, placed, steps))
            placed.append(_box((x, y), text))
            labels.append(Label(text, x, y, mark))
        return labels


def front(points: Iterable[Point]) -> list[Point]:
    """Return the Pareto front, where less x and more y are better, by increasing x; ties go to the first name."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: (point.x, -point.y, point.plan)):
        if not kept or point.y > kept[-1].y:
            kept.append(point)
    return kept


def tokens_charts(results: Results) -> list[Chart]:
    """Plot accuracy against the tokens in the language model, one chart per model."""
    charts = []
    for model, rows in _by_model(results).items():
        points = tuple(_point(row, row["tokens_kept"], f"{count(row['tokens_kept'])} tokens") for row in rows)
        if len(points) > 1:
            charts.append(
                Chart(_name("tokens", model), model, f"{model}: accuracy and tokens", "visual tokens", points)
            )
    return charts


def time_charts(results: Results) -> list[Chart]:
    """Plot accuracy against time to first token for plans with both, one chart per model and device.

    Times are those of the smallest batch; see `_times`.
    """
    charts = []
    for model, rows in _by_model(results).items():
        for device, times in _times(results.speed, model).items():
            timed = [(row, times[row["plan"]]) for row in rows if row["plan"] in times]
            if sum(row["plan"] != FULL_MODEL for row, _ in timed) < 2:
                continue
            small = max(time for _, time in timed) < 0.95
            points = tuple(
                _point(row, time, f"{1000 * time:,.4g} ms to the first token" if small else f"{time:,.3g} s")
                for row, time in timed
            )
            label = f"time to the first token, {'ms' if small else 's'} ({device})"
            title = f"{model}: accuracy and time"
            charts.append(Chart(_name("time", model, device), model, title, label, points, seconds=True))
    return charts


def _by_model(results: Results) -> dict[str, list[dict[str, Any]]]:
    """Rows over all tasks by model."""
    by_model: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in results.accuracy:
        if row["task"] == ALL:
            by_model[row["model"]].append(row)
    return by_model


def _times(rows: Sequence[dict[str, Any]], model: str) -> dict[str, dict[str, float]]:
    """Seconds to the first token by device and plan, at the smallest batch of each device.

    Plans are measured in groups, each with the full model. What differs between groups is the machine's other
    work, so a plan's time is the full model's median over all groups, divided by the speed-up within its own.
    """
    times: dict[str, dict[str, float]] = {}
    mine = [row for row in rows if row["model"] == model]
    for device in dict.fromkeys(row["device"] or "cpu" for row in mine):
        rows_here = [row for row in mine if (row["device"] or "cpu") == device]
        batch = min(row["batch"] for row in rows_here)
        rows_here = [row for row in rows_here if row["batch"] == batch]
        full_model = [row["seconds"]["ttft"] for row in rows_here if row["plan"] == FULL_MODEL]
        spans: dict[str, list[float]] = defaultdict(list)
        for row in rows_here:
            seconds = row["seconds"]["ttft"]
            relative = full_model and row["speed_up"]
            spans[row["plan"]].append(statistics.median(full_model) / row["speed_up"] if relative else seconds)
        name = device if batch == 1 else f"{device}, batch {batch}"
        times[name] = {plan: statistics.median(values) for plan, values in spans.items()}
    return times


def _point(row: dict[str, Any], x: float, what: str) -> Point:
    description = f"{row['plan']}: {row['accuracy']:.1%} right ({row['low']:.1%} to {row['high']:.1%}), {what}"
    group = group_of(row["method"])
    return Point(
        row["plan"], row["method"], group, row["budget"], x, row["accuracy"], row["low"], row["high"], description
    )


def _name(*parts: str) -> str:
    return slug("-".join(parts))


def count(value: float) -> str:
    """Format a mean number of tokens."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def slug(text: str) -> str:
    """Convert a text to part of a file name: lower-case letters, digits, + and hyphens, at most 80."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c == "+") else "-" for c in text.lower())
    return "-".join(filter(None, plain.split("-")))[:80]


def unique(charts: Sequence[Chart]) -> list[Chart]:
    """Give charts distinct file names, also where model names differ only in other characters."""
    named: dict[str, Chart] = {}
    for chart in charts:
        name = chart.name
        while name in named:
            name += "-2"
        named[name] = replace(chart, name=name)
    return list(named.values())


def _ticks(low: float, high: float) -> list[float]:
    """Choose about five round numbers."""
    rough = (high - low) / 5
    size = 10 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        ticks = [factor * 10.0**decade for decade in decades for factor in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 4:
            return ticks
    return ticks if len(ticks) > 1 else _ticks(low, high)


def _around(mark: tuple[float, float], text: str) -> list[tuple[float, float]]:
    """Candidate positions of a label, nearest first."""
    wide = LETTER_WIDTH * len(text)
    places = []
    for far in (0, 8, 18, 30, 44, 60, 80, 105, 135):
        for across in (8 + far / 2, -8 - far / 2 - wide, -wide / 2):
            for down in (-13 - far, 15 + far, *((0.0,) if across != -wide / 2 else ())):
                places.append((mark[0] + across, mark[1] + down))
    return places


def _box(corner: tuple[float, float], text: str) -> tuple[float, float, float, float]:
    x, y = corner
    return x - 2, y - LETTER * 0.62, x + LETTER_WIDTH * len(text) + 2, y + LETTER * 0.62


def _cost(
    corner: tuple[float, float],
    text: str,
    mark: tuple[float, float],
    marks: Sequence[tuple[float, float]],
    placed: Sequence[tuple[float, float, float, float]],
    steps: Sequence[tuple[tuple[float, float], tuple[float, float]]],
) -> float:
    """Cost of a label's position: overlap with labels and frame first, then markers and lines, then distance."""
    left, top, right, bottom = _box(corner, text)
    outside = left < MARGINS[0] or right > WIDTH - 4 or top < 4 or bottom > HEIGHT - MARGINS[3]
    labels = sum(left < other[2] and other[0] < right and top < other[3] and other[1] < bottom for other in placed)
    covered = sum(left - 5 < x < right + 5 and top - 5 < y < bottom + 5 for x, y in marks)
    crossed = sum(
        left < max(a[0], b[0]) and min(a[0], b[0]) < right and top < max(a[1], b[1]) and min(a[1], b[1]) < bottom
        for a, b in steps
    )
    return (
        1000 * outside
        + 500 * labels
        + 6 * covered
        + 4 * crossed
        + math.hypot(corner[0] - mark[0], corner[1] - mark[1]) / 7
    )
