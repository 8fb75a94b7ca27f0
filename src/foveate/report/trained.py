"""Section of a report about connectors that were trained under one protocol (`foveate bench trained`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from foveate.benchmark.trained.formatting import COSTS, claim_line, front, to_first_token
from foveate.report.charts import Chart, Point, count, slug
from foveate.report.grouping import GROUPS
from foveate.report.html import Cell, Column, Row, paragraph, table, tag, text
from foveate.report.tables import percent

WORDS = (
    "Every connector is trained once at each number of tokens, a nested one for all its lengths together, with the "
    "same language model, frozen vision tower, images, steps and seed. Encoders and their control vit are trained from "
    "random weights with the same images and steps, and are compared with each other. Each difference has the noise of "
    "one seed."
)


def trained_charts(rows: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Plot accuracy against tokens, FLOPs to the first token and seconds to the first token."""
    charts = []
    for title, cost in COSTS.items():
        points = tuple(_point(row, float(value), title) for row in rows if (value := cost(dict(row))) is not None)
        if len(points) > 1:
            charts.append(
                Chart(
                    slug(f"trained {title}"),
                    "",
                    f"Trained connectors: accuracy and {title.split(' ', 1)[0]}",
                    title if title != "tokens" else "visual tokens",
                    points,
                    seconds=title.startswith("seconds"),
                )
            )
    return charts


def section(
    rows: Sequence[dict[str, Any]],
    claims: Sequence[dict[str, Any]],
    charts: Sequence[Chart],
    figure: Callable[[Chart], str],
) -> str:
    """Render charts, the table and the claims of papers; "" where nothing was trained.

    Args:
        rows: Of the result file.
        claims: Of the result file.
        charts: From `trained_charts`.
        figure: Renders a chart.
    """
    if not rows:
        return ""
    figures = tag("div", *map(figure, charts), class_="charts")
    said = tag("ul", *(tag("li", text(claim_line(claim))) for claim in claims))
    return paragraph(WORDS) + figures + _table(rows) + tag("h3", "Claims of the papers, and the rows") + said


def _table(rows: Sequence[dict[str, Any]]) -> str:
    tasks = list(dict.fromkeys(task for row in rows for task in row["tasks"]))
    columns = [
        Column("connector", number=False),
        Column("tokens", rising=True),
        Column("accuracy", "mean over the tasks, with a 95 % bootstrap interval over the questions"),
        *(Column(task.replace("_", " "), "exact match") for task in tasks),
        Column("encoder, GFLOPs", rising=True),
        Column("connector, GFLOPs", rising=True),
        Column("first token, GFLOPs", "encoder, connector and language model", rising=True),
        Column("first token, ms", "all models in turns", rising=True),
        Column("training, PFLOPs", rising=True),
    ]
    best = {(row["training"], row["tokens"]) for row in front(rows)}
    return table("Connectors trained under one protocol", columns, [_row(row, tasks, best) for row in rows])


def _row(row: dict[str, Any], tasks: Sequence[str], best: set[tuple[str, int]]) -> Row:
    flops, learned, seconds = row["flops"], row["training_cost"], row.get("first_token_seconds")
    numbers = (
        (flops["encoder"] / 1e9, ".2f"),
        (flops["connector"] / 1e9, ".3f"),
        (to_first_token(row) / 1e9, ".2f"),
        (None if seconds is None else 1e3 * seconds["median"], ".0f"),
        (learned["flops"] / 1e15, ".3f"),
    )
    shares = (row["tasks"][task]["accuracy"] if task in row["tasks"] else None for task in tasks)
    cells = [
        Cell(row["system"], group=_group(row)),
        Cell(count(row["tokens"]), row["tokens"]),
        Cell(
            percent(row["accuracy"]),
            row["accuracy"],
            f"{100 * row['low']:.1f}–{100 * row['high']:.1f}",
            best=(row["training"], row["tokens"]) in best,
        ),
        *(Cell(percent(share, 0), share) for share in shares),
        *(Cell("–" if value is None else f"{value:{form}}", value) for value, form in numbers),
    ]
    return Row(cells, kind="base" if row["control"] else "")


def _group(row: Mapping[str, Any]) -> str:
    return "control" if row["control"] else "connector"


def _point(row: Mapping[str, Any], x: float, what: str) -> Point:
    name = f"{row['system']}, {row['tokens']}"
    description = (
        f"{row['system']} at {row['tokens']} tokens: {row['accuracy']:.1%} right ({row['low']:.1%} to "
        f"{row['high']:.1%}), {x:.4g} {what}"
    )
    group = GROUPS[_group(row)]
    return Point(name, row["system"], group, "", x, row["accuracy"], row["low"], row["high"], description)
