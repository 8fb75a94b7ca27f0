"""Bar charts of token counts and times of two answers."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from foveate.answering import PARTS, Answer
from foveate.visualization.canvas import duration


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        label: what it is.
        value: what it shows, in a unit of the caller's.
        text: the formatted value.
        of: "full-model" or "plan".
    """

    label: str
    value: float
    text: str
    of: str


def token_bars(full_model: Answer, planned: Answer | None) -> list[Bar]:
    """Image tokens at every point of the model, with both answers next to each other."""
    labelled = [("full-model", stage) for stage in full_model.stages]
    if planned is not None:
        # Stages of both answers are adjacent; those of the plan alone come last.
        plan_stages = {(stage.name, number): stage for number, stage in enumerate(planned.stages)}
        for number, stage in reversed(list(enumerate(full_model.stages))):
            if (same := plan_stages.pop((stage.name, number), None)) is not None:
                labelled.insert(number + 1, ("plan", same))
        labelled += [("plan", stage) for stage in plan_stages.values()]
    return [Bar(stage.name, stage.tokens, f"{stage.tokens}", of) for of, stage in labelled]


def time_bars(full_model: Answer, planned: Answer | None) -> list[Bar]:
    """Seconds of every part of both answers, and in total."""
    answers = [("full-model", full_model), *([] if planned is None else [("plan", planned)])]
    return [
        Bar(part, answer.times[part], duration(answer.times[part]), of)
        for part in (*PARTS, "total")
        for of, answer in answers
        if part in answer.times
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
