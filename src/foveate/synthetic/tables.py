"""Tables: look up a cell by its row and column, find the row of the largest number."""

from __future__ import annotations

from collections.abc import Callable

from foveate.synthetic.augmentation import apart, colours, sheet
from foveate.synthetic.page import DoesNotFit, Drawn, Page, RenderRequest
from foveate.synthetic.questions import ask, wordings

LAYOUTS = {"train": ("grid", "rules", "plain", "banded", "head"), "heldout": ("open", "columns", "double")}
CELL = wordings("table.cell")
WHO_HAS = wordings("table.who_has")
EXTREME = wordings("table.extreme")
HEADS = {
    "amount": ("Price", "Cost", "Amount", "Total", "Fee"),
    "count": ("Qty", "Stock", "Units", "Sold", "Points", "Score", "Age", "Size"),
    "code": ("Code", "Ref", "ID", "Model", "Key"),
    "word": ("City", "Team", "Colour", "Group", "Type", "Owner"),
    "date": ("Date", "Due"),
    "number": ("Year", "Number", "No.", "Account"),
}


def _columns(brief: RenderRequest, count: int, longest: int) -> list[tuple[str, str]]:
    """Head and kind of the columns after the first; no head contains another."""
    rng = brief.rng
    columns: list[tuple[str, str]] = []
    while len(columns) < count:
        kind = rng.choice(("amount", "count", "count", "code", "word", "number", "date"))
        if kind == "date" and longest < 10:
            continue
        head = rng.choice(HEADS[kind])
        if rng.random() < 0.25 or (brief.split == "heldout" and rng.random() < 0.5):
            head = brief.words.word(3, max(3, min(7, longest))).title()
        if rng.random() < 0.15:
            head = head.upper()
        if all(head.lower() not in other.lower() and other.lower() not in head.lower() for other, _ in columns):
            columns.append((head, kind))
    return columns


def _cell(brief: RenderRequest, kind: str, longest: int) -> str:
    words = brief.words
    draw: dict[str, Callable[[], str]] = {
        "amount": lambda: words.amount(0.5, 99 if longest < 6 else 900),
        "count": lambda: words.digits(1, 3),
        "code": lambda: words.code(3, max(3, min(6, longest))),
        "word": lambda: words.word(3, max(3, min(8, longest))).title(),
        "date": words.date,
        "number": lambda: words.digits(3, max(3, min(6, longest))),
    }
    return draw[kind]()


def _table(brief: RenderRequest) -> tuple[Page, list[tuple[str, str]], list[str], list[list[str]], dict[str, object]]:
    """A table on a page: columns (head, kind), names of rows, cells."""
    rng = brief.rng
    layout = rng.choice(LAYOUTS[brief.split])
    columns_room = brief.width / brief.least_cap / 5
    count = rng.randint(1, max(1, min(brief.upto(2, 5), round(columns_room))))
    rows_count = rng.randint(2, max(2, min(brief.upto(3, 10), round(brief.height / brief.least_cap / 2.2) - 1)))
    longest = max(3, round(brief.width / brief.least_cap / (count + 1) / 1.05) - brief.attempt // 3)
    columns = _columns(brief, count, longest)
    names: list[str] = []
    upper = rng.random() < 0.2
    while len(names) < rows_count:
        name = brief.words.word(3, max(3, min(9, longest))).title()
        if all(name.lower() not in other.lower() and other.lower() not in name.lower() for other in names):
            names.append(name.upper() if upper else name)
    cells = []
    for _ in names:
        cells.append([_cell(brief, kind, longest) for _, kind in columns])
    corner = rng.choice(("", "Name", "Item", "Row", "Product"))
    if any(corner.lower() == head.lower() for head, _ in columns):
        corner = ""
    font = brief.font("mono" if rng.random() < 0.2 else None)
    title = (
        brief.words.word(4, 9).title() + rng.choice(("", " list", " table"))
        if rng.random() < 0.25 and brief.attempt < 6
        else ""
    )
    strings = [
        [corner, *(head for head, _ in columns)],
        *([name, *row] for name, row in zip(names, cells, strict=True)),
    ]
    gap = rng.uniform(1.6, 2.6)
    widths = [max(font.width(row[c], 1.05) for row in strings) + gap for c in range(count + 1)]
    leading = rng.uniform(1.8, 2.6)
    margin = rng.uniform(3, 5 + 0.03 * brief.width)
    high = leading * (rows_count + 1 + (1.4 if title else 0))
    fits = min((brief.width - 2 * margin) / sum(widths), (brief.height - 2 * margin) / high)
    if fits < brief.floor(max(6.0, brief.least_cap * (1 - 0.02 * brief.attempt))):
        raise DoesNotFit("table")
    cap = min(fits, rng.uniform(brief.least_cap, 22))
    stretch = rng.uniform(1, min(1.8, (brief.width - 2 * margin) / (sum(widths) * cap)))
    paper, ink = colours(rng, brief.difficulty)
    page = Page(sheet(rng, brief.width, brief.height, paper, brief.difficulty), apart(paper, ink))
    left = margin + rng.random() * max(0, brief.width - 2 * margin - sum(widths) * cap * stretch)
    top = margin + rng.random() * max(0, brief.height - 2 * margin - high * cap)
    face = font.face(cap)
    if title:
        page.text(left + cap / 2, top + 1.3 * cap, title, face, ink)
        top += 1.4 * leading * cap
    edges = [left]
    for width in widths:
        edges.append(edges[-1] + width * cap * stretch)
    step = leading * cap
    soft = tuple(round(0.72 * p + 0.28 * i) for p, i in zip(paper, ink, strict=True))
    faint = tuple(round(0.88 * p + 0.12 * i) for p, i in zip(paper, ink, strict=True))
    bottom = top + step * len(strings)
    if layout == "banded":
        for r in range(0, len(strings), 2):
            page.draw.rectangle((left, top + r * step, edges[-1], top + (r + 1) * step), fill=faint)
    if layout == "head":
        page.draw.rectangle((left, top, edges[-1], top + step), fill=soft)
    line = ink if rng.random() < 0.6 else soft
    if layout in ("grid", "rules", "double"):
        for r in range(len(strings) + 1):
            page.draw.line((left, top + r * step, edges[-1], top + r * step), fill=line)
            if layout == "double" and r < 2:
                page.draw.line((left, top + r * step - 2, edges[-1], top + r * step - 2), fill=line)
    if layout in ("grid", "columns"):
        for x in edges:
            page.draw.line((x, top, x, bottom), fill=line)
    if layout in ("plain", "columns", "head", "open"):
        page.draw.line((left, top + step, edges[-1], top + step), fill=line)
    align = ["left", *(rng.choice(("left", "right", "centre")) for _ in columns)]
    pad = 0.4 * gap * cap
    for r, row in enumerate(strings):
        y = top + r * step + (step + cap) / 2
        for c, text in enumerate(row):
            if align[c] == "left":
                page.text(edges[c] + pad, y, text, face, ink)
            elif align[c] == "right":
                page.text_right(edges[c + 1] - pad, y, text, face, ink)
            else:
                page.text_centred((edges[c] + edges[c + 1]) / 2, y, text, face, ink)
    return page, columns, names, cells, {"layout": layout, "rows": len(names), "columns": count, "cap": cap}


def _said(brief: RenderRequest, text: str) -> str:
    return text.lower() if brief.rng.random() < 0.25 else text


def table_cell(brief: RenderRequest) -> tuple[Page, Drawn]:
    """A cell by the name of its row and the head of its column."""
    rng = brief.rng
    page, columns, names, cells, meta = _table(brief)
    places = [(r, c) for r in range(len(names)) for c in range(len(columns))]
    questions = [
        (ask(rng, brief.split, CELL, row=_said(brief, names[r]), column=_said(brief, columns[c][0])), cells[r][c])
        for r, c in rng.sample(places, min(brief.most, len(places)))
    ]
    return page, Drawn(*questions[0], meta, tuple(questions[1:]))


def table_row(brief: RenderRequest) -> tuple[Page, Drawn]:
    """The row that has a value, or the largest or smallest number of a column."""
    rng = brief.rng
    page, columns, names, cells, meta = _table(brief)
    c = rng.randrange(len(columns))
    values = [row[c] for row in cells]
    head, kind = columns[c]
    if kind in ("amount", "count", "number") and rng.random() < 0.6:
        numbers = [float(value) for value in values]
        most = rng.choice(("highest", "lowest", "largest", "smallest"))
        best = max(numbers) if most in ("highest", "largest") else min(numbers)
        if numbers.count(best) > 1:
            raise DoesNotFit("a tie")
        question = ask(rng, brief.split, EXTREME, most=most, column=_said(brief, head))
        return page, Drawn(question, names[numbers.index(best)], {**meta, "kind": "extreme"})
    r = rng.randrange(len(names))
    if values.count(values[r]) > 1:
        raise DoesNotFit("the same value twice")
    question = ask(rng, brief.split, WHO_HAS, column=_said(brief, head), value=values[r])
    return page, Drawn(question, names[r], {**meta, "kind": "which"})
