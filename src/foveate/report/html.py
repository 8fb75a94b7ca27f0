"""HTML elements. Every text is escaped here, so that no name in a result file can be markup."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from html import escape
from importlib.resources import files
from urllib.parse import quote

#: What pages of this report are known by.
GENERATOR = "foveate report"


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        title: At its top.
        hint: What it means, where the title is too short for it.
        number: Whether it is numeric: right-aligned, and sorted with the largest first.
        rising: Whether the smallest number comes first when sorted.
        class_: Of its cells.
    """

    title: str
    hint: str = ""
    number: bool = True
    rising: bool = False
    class_: str = ""


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Args:
        text: Content.
        value: What it is sorted by; the text where it is None.
        small: A remark behind the text.
        link: Address.
        tint: Percent of the colour of a loss; negative: of a gain.
        best: Whether it is highlighted.
        group: Family whose marker precedes the text.
    """

    text: str
    value: float | None = None
    small: str = ""
    link: str = ""
    tint: int = 0
    best: bool = False
    group: str = ""


@dataclass(frozen=True)
class Row:
    """A row of a table with its filter attributes."""

    cells: Sequence[Cell]
    data: Mapping[str, str] = field(default_factory=dict)
    kind: str = ""


def tag(name: str, /, *content: str, **attributes: str | bool | None) -> str:
    """Render an element. Content is markup already, attributes are escaped; `class_` is class, `data_x` is data-x."""
    rendered = ""
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        rendered += f" {key}" if value is True else f' {key}="{escape(str(value))}"'
    return f"<{name}{rendered}>{''.join(content)}</{name}>"


def text(value: object) -> str:
    """Escape a text."""
    return escape(str(value))


def paragraph(value: str, class_: str | None = None) -> str:
    """Render a paragraph of plain text."""
    return tag("p", text(value), class_=class_)


def address(*parts: str) -> str:
    """Return a relative address of a file."""
    return "/".join(quote(part, safe="+") for part in parts)


def table(caption: str, columns: Sequence[Column], rows: Iterable[Row], *, class_: str = "", sort: bool = True) -> str:
    """Render a table with a caption, sortable with scripts, in a frame that scrolls sideways on narrow screens."""
    heads = "".join(
        tag(
            "th",
            tag("button", text(column.title), type="button") if sort else text(column.title),
            scope="col",
            title=column.hint or None,
            class_=" ".join(["n"] * column.number + [column.class_] * bool(column.class_)) or None,
            data_first="rising" if column.rising or not column.number else None,
        )
        for column in columns
    )
    body = "".join(_row(row, columns) for row in rows)
    head = tag("caption", tag("span", text(caption))) + tag("thead", tag("tr", heads))
    inner = tag("table", head, tag("tbody", body), class_=f"sortable {class_}".strip() if sort else class_ or None)
    return tag("div", inner, class_="frame", tabindex="0", role="region", aria_label=caption)


def _row(row: Row, columns: Sequence[Column]) -> str:
    cells = []
    for place, (cell, column) in enumerate(zip(row.cells, columns, strict=True)):
        inside = text(cell.text)
        if cell.link:
            inside = tag("a", inside, href=cell.link)
        if cell.group:
            inside = tag("i", class_=f"dot g-{cell.group}", aria_hidden="true") + inside
        if cell.small:
            inside += " " + tag("small", text(cell.small))
        kinds = [
            kind for kind, is_so in (("n", column.number), ("best", cell.best), (column.class_, column.class_)) if is_so
        ]
        tint = None
        if cell.tint:
            kinds.append("loss" if cell.tint > 0 else "gain")
            tint = f"--s:{min(abs(cell.tint), 100)}%"
        cells.append(
            tag(
                "td" if place else "th",
                inside,
                scope=None if place else "row",
                class_=" ".join(kinds) or None,
                style=tint,
                data_v=None if cell.value is None else f"{cell.value:.10g}",
            )
        )
    data = {f"data_{name}": value for name, value in row.data.items()}
    return tag("tr", *cells, class_=row.kind or None, **data)


@cache
def _asset(name: str) -> str:
    return files("foveate.report").joinpath(name).read_text(encoding="utf-8")


def page(title: str, body: str, *, colours: Mapping[str, str]) -> str:
    """Render a page that needs no other file but images: style and script are inlined.

    Args:
        title: Of the page.
        body: Markup.
        colours: Of families by their key.
    """
    groups = "".join(f".g-{key}{{--g:{colour}}}" for key, colour in colours.items())
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><meta name="generator" content="{GENERATOR}">'
        f'<link rel="icon" href="data:,"><title>{text(title)}</title><style>{_asset("style.css")}{groups}</style>'
    )
    script = f"<script>{_asset('script.js')}</script>"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n{script}</body></html>\n'
