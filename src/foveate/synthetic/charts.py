"""Bar, column, line and pie charts: questions on values, extremes and comparisons."""

from __future__ import annotations

import math
import random
from itertools import pairwise
from typing import NamedTuple

from PIL import Image, ImageDraw

from foveate.synthetic.augmentation import Colour, apart, colours, sheet
from foveate.synthetic.fonts import Face, Font
from foveate.synthetic.page import Box, DoesNotFit, Drawn, Page, RenderRequest
from foveate.synthetic.questions import ask, wordings, yes_no
from foveate.synthetic.shapes import COLOURS, look_alike, tint

LAYOUTS = {"train": ("columns", "bars", "line", "pie"), "heldout": ("columns", "bars", "line", "pie")}
# Drawing styles; the held-out charts have others.
STYLES = {
    "columns": {"train": ("plain", "grid", "frame"), "heldout": ("hatched", "outlined")},
    "bars": {"train": ("plain", "grid", "frame"), "heldout": ("hatched", "outlined")},
    "line": {"train": ("dots", "grid"), "heldout": ("squares", "dashed")},
    "pie": {"train": ("full",), "heldout": ("ring",)},
}
VALUE = wordings("chart.value")
SHARE = wordings("chart.share")
HIGHEST = {way: wordings(f"chart.highest.{way}") for way in ("columns", "bars", "line", "pie")}
LOWEST = {way: wordings(f"chart.lowest.{way}") for way in ("columns", "bars", "line", "pie")}
MORE = wordings("chart.more")
LESS = wordings("chart.less")
WHICH_MORE = wordings("chart.which_more")
WHICH_LESS = wordings("chart.which_less")
HOW_MANY = {way: wordings(f"chart.how_many.{way}") for way in ("columns", "bars", "line", "pie")}
TITLE = wordings("chart.title")
VALUE_OF = {way: wordings(f"chart.value_of_{way}") for way in ("highest", "lowest")}
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


class Chart(NamedTuple):
    """What a drawn chart shows."""

    kind: str
    names: list[str]
    values: list[int]
    printed: list[str]  # values as printed, "" where none is
    title: str
    tints: list[str]  # name of the colour of each bar or slice
    meta: dict[str, object]


def _values(rng: random.Random, count: int, apart_by: float) -> list[int]:
    """Whole numbers of which no two are nearer than `apart_by` times the largest."""
    scale = rng.choice((10, 20, 50, 100, 100, 500, 1000))
    for _ in range(400):
        values = [max(1, round(scale * rng.uniform(0.08, 1))) for _ in range(count)]
        ranked = sorted(values)
        if all(b - a >= max(1, apart_by * ranked[-1]) for a, b in pairwise(ranked)):
            return values
    raise DoesNotFit("values too near to one another")


def _names(brief: RenderRequest, count: int, longest: int) -> list[str]:
    rng = brief.rng
    kind = rng.random()
    if kind < 0.12 and count <= 12:
        start = rng.randrange(12)
        return [_MONTHS[(start + i) % 12] for i in range(count)]
    if kind < 0.18 and count <= 7:
        return list(_DAYS[:count])
    if kind < 0.28:
        start = rng.randint(1995, 2028)
        return [str(start + i) for i in range(count)]
    if kind < 0.36:
        return [f"{letter}" for letter in "ABCDEFGH"[:count]]
    names: list[str] = []
    while len(names) < count:
        name = brief.words.word(3, max(3, min(9, longest))).title()
        if all(name.lower() not in other.lower() and other.lower() not in name.lower() for other in names):
            names.append(name)
    return names


def _fills(brief: RenderRequest, count: int, paper: Colour) -> tuple[list[Colour], list[str]]:
    """Fill of each bar or slice, with the names of the colours ("" when all are alike)."""
    rng = brief.rng
    usable = [name for name in COLOURS if apart(COLOURS[name], paper) > 50]
    if rng.random() < 0.45:
        name = rng.choice(usable)
        return [tint(rng, name, brief.difficulty)] * count, [""] * count
    rng.shuffle(usable)
    names: list[str] = []
    for name in usable:
        if not look_alike(name, set(names)):
            names.append(name)
    if len(names) < count:
        name = rng.choice(usable)
        return [tint(rng, name, brief.difficulty)] * count, [""] * count
    names = names[:count]
    return [tint(rng, name, brief.difficulty) for name in names], names


def _grid_step(top: int) -> int:
    """Distance of grid lines: 1, 2 or 5 times a power of ten, three to six lines up to `top`."""
    step = 10 ** max(0, math.floor(math.log10(max(1, top))) - 1)
    for factor in (1, 2, 5, 10, 20, 50):
        if top / (step * factor) <= 6:
            return step * factor
    return step * 100


class Sheet(NamedTuple):
    """A page with the colours and faces that a chart is drawn with; `soft` is the colour of grid lines."""

    page: Page
    paper: Colour
    ink: Colour
    soft: Colour
    font: Font
    face: Face
    cap: float


def _sheet(brief: RenderRequest, title: str) -> tuple[Sheet, Box]:
    """An empty page with its title, and the box left for the chart."""
    rng = brief.rng
    paper, ink = colours(rng, brief.difficulty * 0.7)
    page = Page(sheet(rng, brief.width, brief.height, paper, brief.difficulty * 0.7), apart(paper, ink))
    font = brief.font()
    most = min(20.0, brief.height / 9, brief.width / 11)
    cap = brief.floor(max(brief.least_cap * (1 - 0.015 * brief.attempt), 6.0))
    cap = rng.uniform(cap, max(cap, most))
    margin = rng.uniform(4, 5 + 0.03 * min(brief.width, brief.height))
    top = margin
    if title:
        face = font.face(min(cap * rng.uniform(1, 1.3), (brief.width - 2 * margin) / font.width(title, 1.06)))
        page.text_centred(brief.width / 2, top + 1.25 * cap, title, face, ink)
        top += 2.4 * cap
    soft = tuple(round(0.75 * p + 0.25 * i) for p, i in zip(paper, ink, strict=True))
    box = Box(margin, top, brief.width - margin, brief.height - margin)
    return Sheet(page, paper, ink, soft, font, font.face(cap), cap), box


def _block(s: Sheet, box: tuple[float, float, float, float], fill: Colour, style: str) -> None:
    if style == "outlined":
        s.page.draw.rectangle(box, fill=fill, outline=s.ink, width=2)
    elif style == "hatched":
        s.page.draw.rectangle(box, outline=fill, width=2)
        left, top, right, bottom = (round(v) for v in box)
        for y in range(top + 3, bottom, 4):
            s.page.draw.line((left, y, right, y), fill=fill)
    else:
        s.page.draw.rectangle(box, fill=fill)


def _columns(brief: RenderRequest, s: Sheet, box: Box, chart: Chart, fills: list[Colour], style: str) -> None:
    """Upright bars with names beneath."""
    top_value, count = max(chart.values), len(chart.names)
    axis = box.left
    ticks = _ticks(s, chart)
    if ticks:
        axis += max(s.face.width(t) for _, t in ticks) + 5
    floor = box.bottom - 1.9 * s.cap
    space = floor - box.top - (1.7 * s.cap if any(chart.printed) else 0.5 * s.cap)
    slot = (box.right - axis) / count
    if (
        space < 4 * s.cap
        or any(s.face.width(name) > slot - 3 for name in chart.names)
        or any(s.face.width(p) > slot - 1 for p in chart.printed)
    ):
        raise DoesNotFit("columns")
    reach = max([top_value, *(v for v, _ in ticks)])
    for value, text in ticks:
        y = floor - space * value / reach
        if style == "grid":
            s.page.draw.line((axis, y, box.right, y), fill=s.soft)
        s.page.draw.line((axis - 3, y, axis, y), fill=s.ink)
        s.page.text_right(axis - 4, y + s.cap / 2, text, s.face, s.ink)
    wide = slot * brief.rng.uniform(0.45, 0.85)
    for i, (name, value) in enumerate(zip(chart.names, chart.values, strict=True)):
        x = axis + (i + 0.5) * slot
        y = floor - max(2.0, space * value / reach)
        _block(s, (x - wide / 2, y, x + wide / 2, floor), fills[i], style)
        s.page.text_centred(x, floor + 1.5 * s.cap, name, s.face, s.ink)
        if chart.printed[i]:
            s.page.text_centred(x, y - 0.45 * s.cap, chart.printed[i], s.face, s.ink)
    s.page.draw.line((axis, floor, box.right, floor), fill=s.ink)
    s.page.draw.line((axis, floor, axis, floor - space), fill=s.ink)
    if style == "frame":
        s.page.draw.rectangle((axis, box.top, box.right, floor), outline=s.ink)


def _bars(brief: RenderRequest, s: Sheet, box: Box, chart: Chart, fills: list[Colour], style: str) -> None:
    """Lying bars with names at the left."""
    axis = box.left + max(s.face.width(name) for name in chart.names) + 5
    space = box.right - axis - (max(s.face.width(p) for p in chart.printed) + 6 if any(chart.printed) else 3)
    slot = (box.bottom - box.top) / len(chart.names)
    if space < 5 * s.cap or slot < 1.7 * s.cap:
        raise DoesNotFit("bars")
    thick = max(s.cap, min(slot * brief.rng.uniform(0.45, 0.85), 5 * s.cap))
    if style == "grid":
        for i in range(1, 5):
            s.page.draw.line((axis + space * i / 4, box.top, axis + space * i / 4, box.bottom), fill=s.soft)
    for i, (name, value) in enumerate(zip(chart.names, chart.values, strict=True)):
        y = box.top + (i + 0.5) * slot
        x = axis + max(2.0, space * value / max(chart.values))
        _block(s, (axis, y - thick / 2, x, y + thick / 2), fills[i], style)
        s.page.text_right(axis - 4, y + s.cap / 2, name, s.face, s.ink)
        if chart.printed[i]:
            s.page.text(x + 4, y + s.cap / 2, chart.printed[i], s.face, s.ink)
    s.page.draw.line((axis, box.top, axis, box.bottom), fill=s.ink)
    if style == "frame":
        s.page.draw.rectangle((axis, box.top, box.right, box.bottom), outline=s.ink)


def _line(brief: RenderRequest, s: Sheet, box: Box, chart: Chart, fills: list[Colour], style: str) -> None:
    """Points joined by a line, names beneath."""
    count = len(chart.names)
    floor = box.bottom - 1.9 * s.cap
    axis = box.left + 1
    ticks = _ticks(s, chart)
    if ticks:
        axis += max(s.face.width(t) for _, t in ticks) + 5
    space = floor - box.top - (2 * s.cap if any(chart.printed) else s.cap) - 4
    slot = (box.right - axis) / count
    if space < 4 * s.cap or any(s.face.width(text) > slot - 3 for text in (*chart.names, *chart.printed)):
        raise DoesNotFit("line")
    reach = max([*chart.values, *(v for v, _ in ticks)])
    for value, text in ticks:
        y = floor - 4 - space * value / reach
        if style == "grid":
            s.page.draw.line((axis, y, box.right, y), fill=s.soft)
        s.page.text_right(axis - 4, y + s.cap / 2, text, s.face, s.ink)
    points = [(axis + (i + 0.5) * slot, floor - 4 - space * v / reach) for i, v in enumerate(chart.values)]
    colour = fills[0]
    thick = 1 + (s.cap > 9) + (brief.rng.random() < 0.3)
    if style == "dashed":
        for (x0, y0), (x1, y1) in pairwise(points):
            parts = max(2, int(math.hypot(x1 - x0, y1 - y0) / 5))
            for k in range(0, parts, 2):
                a, b = k / parts, (k + 1) / parts
                s.page.draw.line(
                    (x0 + a * (x1 - x0), y0 + a * (y1 - y0), x0 + b * (x1 - x0), y0 + b * (y1 - y0)),
                    fill=colour,
                    width=thick,
                )
    else:
        s.page.draw.line(points, fill=colour, width=thick)
    radius = 2 + thick
    for i, (x, y) in enumerate(points):
        corner = (x - radius, y - radius, x + radius, y + radius)
        if style == "squares":
            s.page.draw.rectangle(corner, fill=colour)
        else:
            s.page.draw.ellipse(corner, fill=colour)
        s.page.text_centred(x, floor + 1.5 * s.cap, chart.names[i], s.face, s.ink)
        if chart.printed[i]:
            # Above the point where the line does not run through it.
            s.page.text_centred(x, y - radius - 0.5 * s.cap, chart.printed[i], s.face, s.ink)
    s.page.draw.line((axis, floor, box.right, floor), fill=s.ink)
    s.page.draw.line((axis, floor, axis, box.top), fill=s.ink)


def _pie(brief: RenderRequest, s: Sheet, box: Box, chart: Chart, fills: list[Colour], style: str) -> None:
    """Slices with names, and percentages, in a legend."""
    rng = brief.rng
    texts = [f"{n} {p}".strip() for n, p in zip(chart.names, chart.printed, strict=True)]
    legend = max(s.face.width(t) for t in texts) + 2.2 * s.cap
    high = 1.8 * s.cap * len(texts)
    adjacent = (
        box.right - box.left - legend > min(box.bottom - box.top, box.right - box.left) * 0.45
        and box.right - box.left > box.bottom - box.top
    )
    if adjacent:
        radius = min(box.right - box.left - legend - 4, box.bottom - box.top) / 2 - 1
        cx, cy = box.left + radius, (box.top + box.bottom) / 2
        x, y = box.right - legend, cy - high / 2
    else:
        radius = min(box.bottom - box.top - high - 4, box.right - box.left) / 2 - 1
        cx, cy = (box.left + box.right) / 2, box.top + radius
        x, y = (box.left + box.right - legend) / 2, box.top + 2 * radius + 4
    if radius < 14 or high > box.bottom - box.top or legend > box.right - box.left:
        raise DoesNotFit("pie")
    scale = 3
    side = 2 * math.ceil(radius) + 2
    start = rng.uniform(0, 360)
    total = sum(chart.values)
    for value, fill in zip(chart.values, fills, strict=True):
        end = start + 360 * value / total
        mask = Image.new("L", (side * scale, side * scale), 0)
        pen = ImageDraw.Draw(mask)
        pen.pieslice((scale, scale, (side - 1) * scale, (side - 1) * scale), start, end, fill=255)
        if style == "ring":
            hole = 0.28 * side * scale
            pen.ellipse((hole, hole, side * scale - hole, side * scale - hole), fill=0)
        s.page.draw.bitmap((round(cx - side / 2), round(cy - side / 2)), mask.reduce(scale), fill)
        start = end
    for text, fill in zip(texts, fills, strict=True):
        s.page.draw.rectangle((x, y + 0.3 * s.cap, x + 1.1 * s.cap, y + 1.4 * s.cap), fill=fill)
        s.page.text(x + 1.8 * s.cap, y + 1.35 * s.cap, text, s.face, s.ink)
        y += 1.8 * s.cap


def _ticks(s: Sheet, chart: Chart) -> list[tuple[int, str]]:
    """Numbers at the axis, where no values are printed at the bars."""
    if any(chart.printed):
        return []
    step = _grid_step(max(chart.values))
    top = -(-max(chart.values) // step) * step
    return [(value, str(value)) for value in range(0, top + 1, step)]


_DRAW = {"columns": _columns, "bars": _bars, "line": _line, "pie": _pie}


def _chart(
    brief: RenderRequest, printed: bool | None = None, kinds: tuple[str, ...] | None = None
) -> tuple[Page, Chart]:
    """A chart on a page, of one of `kinds`. `printed`: values stand at the bars (None: sometimes)."""
    rng = brief.rng
    kind = rng.choice(kinds or LAYOUTS[brief.split]) if brief.attempt < 30 else "bars"
    style = rng.choice(STYLES[kind][brief.split])
    count = rng.randint(2, max(2, brief.upto(3, 7)))
    space = brief.width / brief.least_cap / 1.1
    longest = max(3, round(space / count if kind in ("columns", "line") else space / 2) - brief.attempt // 4)
    names = _names(brief, count, longest)
    values = _values(rng, count, 0.05 + 0.07 * (1 - brief.difficulty))
    shown = printed if printed is not None else rng.random() < 0.5
    if kind == "pie":
        total = sum(values)
        percents = [round(100 * v / total) for v in values]
        percents[-1] = 100 - sum(percents[:-1])
        if len(set(percents)) < count or min(percents) < 4:
            raise DoesNotFit("slices too small or alike")
        values, texts = percents, [f"{p}%" for p in percents]
    else:
        texts = [str(v) for v in values]
    title = ""
    if rng.random() < 0.5 and brief.attempt < 15:
        title = brief.words.word(4, 9).title()
        title += rng.choice(("", " by year", " sold", " in 2024", " per day", " (units)", f" {brief.words.word(3, 7)}"))
        if brief.least_cap * 0.95 * len(title) > brief.width:
            title = title.split()[0]
    s, box = _sheet(brief, title)
    fills, tints = _fills(brief, count, s.paper)
    if kind == "pie" and not tints[0]:
        raise DoesNotFit("a pie needs a colour for each slice")
    chart = Chart(
        kind,
        names,
        values,
        texts if shown else [""] * count,
        title,
        tints,
        {"kind": kind, "style": style, "cap": s.cap, "bars": count},
    )
    _DRAW[kind](brief, s, box, chart, fills, style)
    return s.page, chart


def chart_value(brief: RenderRequest) -> tuple[Page, Drawn]:
    """A value printed at a bar, a point or a slice; or the title."""
    rng = brief.rng
    page, chart = _chart(brief, printed=True)
    if chart.title and rng.random() < 0.12:
        return page, Drawn(ask(rng, brief.split, TITLE), chart.title, {**chart.meta, "asked": "title"})
    i = rng.randrange(len(chart.names))
    wordings = SHARE + VALUE[:3] if chart.kind == "pie" else VALUE
    name = chart.names[i]
    return page, Drawn(ask(rng, brief.split, wordings, name=name), chart.printed[i], {**chart.meta, "asked": "value"})


def chart_extreme(brief: RenderRequest) -> tuple[Page, Drawn]:
    """Name of the highest or the lowest; or how many there are."""
    rng = brief.rng
    page, chart = _chart(brief)
    if rng.random() < 0.12:
        return page, Drawn(
            ask(rng, brief.split, HOW_MANY[chart.kind]), str(len(chart.names)), {**chart.meta, "asked": "count"}
        )
    high = rng.random() < 0.5
    i = chart.values.index(max(chart.values) if high else min(chart.values))
    wordings = (HIGHEST if high else LOWEST)[chart.kind]
    return page, Drawn(
        ask(rng, brief.split, wordings), chart.names[i], {**chart.meta, "asked": "highest" if high else "lowest"}
    )


def chart_compare(brief: RenderRequest) -> tuple[Page, Drawn]:
    """Which of two is higher or lower, or whether one is."""
    rng = brief.rng
    page, chart = _chart(brief)
    i, j = rng.sample(range(len(chart.names)), 2)
    a, b = chart.names[i], chart.names[j]
    if rng.random() < 0.5:
        more = rng.random() < 0.5
        truth = (chart.values[i] > chart.values[j]) == more
        return page, Drawn(
            ask(rng, brief.split, MORE if more else LESS, a=a, b=b), yes_no(truth), {**chart.meta, "asked": "yes_no"}
        )
    more = rng.random() < 0.5
    answer = a if (chart.values[i] > chart.values[j]) == more else b
    return page, Drawn(
        ask(rng, brief.split, WHICH_MORE if more else WHICH_LESS, a=a, b=b), answer, {**chart.meta, "asked": "which"}
    )


def bar_chart(brief: RenderRequest) -> tuple[Page, Drawn]:
    """Bars or columns: which is the highest or lowest, its value, the value of another, how many there are."""
    rng, split = brief.rng, brief.split
    page, chart = _chart(brief, True if rng.random() < 0.8 else None, ("columns", "bars"))
    ends = {"highest": chart.values.index(max(chart.values)), "lowest": chart.values.index(min(chart.values))}
    asked = [
        (ask(rng, split, (HIGHEST if way == "highest" else LOWEST)[chart.kind]), chart.names[i])
        for way, i in ends.items()
    ]
    if all(chart.printed):
        asked += [(ask(rng, split, VALUE_OF[way]), chart.printed[i]) for way, i in ends.items()]
        for name, value in zip(chart.names, chart.printed, strict=True):
            asked.append((ask(rng, split, VALUE, name=name if rng.random() < 0.7 else name.lower()), value))
    if rng.random() < 0.2:
        asked.append((ask(rng, split, HOW_MANY[chart.kind]), str(len(chart.names))))
    (question, answer), *more = rng.sample(asked, min(brief.most, len(asked)))
    return page, Drawn(question, answer, {**chart.meta}, tuple(more))
