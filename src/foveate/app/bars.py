"""Bar charts of token counts and times of several answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from foveate.answering import PARTS, Stage
from foveate.app.comparison import Contender
from foveate.visualization.canvas import duration


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        label: what it is.
        value: what it shows, in a unit of the caller's.
        text: the formatted value.
        of: kind of the contender; see `Contender.kind`.
    """

    label: str
    value: float
    text: str
    of: str


def token_bars(compared: Sequence[Contender]) -> list[Bar]:
    """Image tokens at every point of the model, bars of the same point next to each other."""
    labelled: list[tuple[str, int, Stage]] = []
    for contender in compared:
        # Points of earlier answers keep their order; those of this answer alone come last.
        for number, stage in enumerate(() if contender.answer is None else contender.answer.stages):
            same = [place for place, (_, n, s) in enumerate(labelled) if (s.name, n) == (stage.name, number)]
            labelled.insert(same[-1] + 1 if same else len(labelled), (contender.kind, number, stage))
    return [Bar(stage.name, stage.tokens, f"{stage.tokens}", kind) for kind, _, stage in labelled]


def time_bars(compared: Sequence[Contender]) -> list[Bar]:
    """Seconds of every part of the answers, and in total."""
    return [
        Bar(part, contender.times[part], duration(contender.times[part]), contender.kind)
        for part in (*PARTS, "total")
        for contender in compared
        if part in contender.times
    ]


def safe(text: str) -> str:
    """Escape text for HTML, with braces and dollar signs, which gradio's templates would interpret."""
    return escape(text).replace("{", "&#123;").replace("}", "&#125;").replace("$", "&#36;")


def as_html(title: str, bars: list[Bar]) -> str:
    """Render bars as HTML; a label equal to that of the bar above is not repeated."""
    longest = max((bar.value for bar in bars), default=0) or 1
    rows, before = [], None
    for bar in bars:
        label = "" if bar.label == before else safe(bar.label)
        before = bar.label
        rows.append(
            f'<div class="bar {bar.of}"><span class="label" title="{safe(bar.label)}">{label}</span>'
            f'<span class="track"><span class="fill" style="width:{100 * bar.value / longest:.2f}%"></span></span>'
            f'<span class="value">{safe(bar.text)}</span></div>'
        )
    return f'<section class="bars"><h3>{safe(title)}</h3>{"".join(rows)}</section>'
