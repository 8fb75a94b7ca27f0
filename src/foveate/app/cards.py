"""HTML of answers, errors, legends and token details."""

from __future__ import annotations

from collections.abc import Sequence

from foveate.app.bars import as_html, safe, time_bars, token_bars
from foveate.app.by_hand import Board
from foveate.app.comparison import Contender
from foveate.app.views import Fact, Swatch, View
from foveate.core.errors import FoveateError
from foveate.visualization.canvas import duration
from foveate.visualization.selection import swatch_colours

WELCOME = (
    '<div class="welcome">Give an image and a question. The answers with all tokens and with fewer, which tokens were '
    "kept and where the time went appear here.</div>"
)
WELCOME_CLIP = WELCOME.replace("an image", "an image or a clip")
NOTHING_SHOWN = '<p class="hint">Ask a question to see which tokens the plan keeps, merges and drops.</p>'
NOT_MEASURED = '<p class="hint">Ask a question to see tokens and times of every part of the model.</p>'
NO_BOARD = '<p class="hint">Keep or drop single tokens of the image by clicking them, and ask with exactly those.</p>'


def notice(error: FoveateError) -> str:
    """Render an error as one sentence."""
    return f'<div class="notice" role="alert">{safe(" ".join(str(error).split()))}</div>'


def answers(question: str, compared: Sequence[Contender]) -> str:
    """Render the question and one card for every contender."""
    cards = "".join(_card(contender, compared[0]) for contender in compared)
    runs = max(len(contender.runs) for contender in compared)
    measured = {
        0: "Times follow: everything answers once to warm up, then again to be timed.",
        1: "Times of one run each, after a run to warm up.",
    }.get(runs, f"Times are the fastest of {runs} runs each, in alternating order, after a run to warm up.")
    return (
        f'<p class="asked">{safe(question.strip())}</p><div class="answers">{cards}</div>'
        f'<p class="measured">{measured}</p>'
    )


def _card(contender: Contender, full_model: Contender) -> str:
    answer = contender.answer
    if contender.refusal:
        body = f'<p class="small">Not possible with this model: {safe(contender.refusal)}</p>'
    elif answer is None:
        body = '<p class="text wait">...</p>'
    else:
        body = f'<p class="text">{safe(answer.text or "(no answer)")}</p>'
        numbers = [f"{answer.tokens.read} tokens"]
        if answer.frames is not None:
            numbers.append(f"{answer.frames} frame{'s' if answer.frames > 1 else ''}")
        if total := contender.times.get("total"):
            numbers.append(duration(total))
            if contender is not full_model:
                numbers.append(f"{full_model.times['total'] / total:.2f} times as fast")
        body += f'<p class="numbers">{"".join(f"<span>{number}</span>" for number in numbers)}</p>'
        notes = dict.fromkeys(note for image in answer.selection for note in image["notes"])
        body += "".join(f'<p class="small">{safe(note)}</p>' for note in notes)
    return f'<div class="answer {contender.kind}"><h3>{safe(contender.title)}</h3>{body}</div>'


def caption(view: View) -> str:
    """Render what a view shows, with its legend."""
    return f"{legend(view.legend)}<p>{safe(view.caption)}</p>"


def legend(entries: Sequence[Swatch]) -> str:
    """Render the legend of a picture."""
    shown = "".join(
        '<li><span class="swatch">'
        + "".join(f'<i style="background:rgb({red},{green},{blue})"></i>' for red, green, blue in entry.colours)
        + f"</span>{safe(entry.text)}</li>"
        for entry in entries
    )
    return f'<ul class="legend">{shown}</ul>' if shown else ""


def board_caption(board: Board) -> str:
    """Render how many tokens are kept by hand, with the legend."""
    kept = len(board.kept)
    entries = (
        Swatch(tuple(swatch_colours("kept")), f"{kept} kept"),
        Swatch(tuple(swatch_colours("dropped")), f"{board.count - kept} dropped"),
    )
    return f"{legend(entries)}<p>Click a token to drop it, or to keep it again.</p>"


def hint(view: View) -> str:
    """Render what a click does, where there are tokens to click."""
    tokens = bool((view.tokens >= 0).any())
    return '<p class="hint">Click a token in the picture for its details.</p>' if tokens else ""


def details(chosen: Fact) -> str:
    """Render the details of a clicked token."""
    lines = "".join(f"<dt>{safe(name)}</dt><dd>{safe(value)}</dd>" for name, value in chosen.lines)
    return f'<div class="fact"><h3>{safe(chosen.title)}</h3><dl>{lines}</dl></div>'


def charts(compared: Sequence[Contender]) -> str:
    """Render the bars of all contenders, and which colour is whose."""
    names = "".join(
        f'<li class="{contender.kind}"><span class="swatch"><i></i></span>{safe(contender.title)}</li>'
        for contender in compared
        if contender.answer is not None
    )
    tokens = as_html("Visual tokens", token_bars(compared))
    times = as_html("Time", time_bars(compared))
    return f'<ul class="legend names">{names}</ul><div class="charts">{tokens}{times}</div>'
