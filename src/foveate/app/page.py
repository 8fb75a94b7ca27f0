"""Layout and event handlers of the app. Needs the extra `app`."""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr  # ty: ignore[import-not-found]  (has an environment of its own)
from fastapi import FastAPI

from foveate.answering import Answer, ask
from foveate.app.bars import as_html, safe, time_bars, token_bars
from foveate.app.choices import PERCENT, Choice
from foveate.app.lines import python_line, shell_line
from foveate.app.views import Fact, View, fact, outlined, views
from foveate.core.errors import FoveateError
from foveate.core.plan import Plan
from foveate.images import open_image

log = logging.getLogger("foveate.app")

STYLE = Path(__file__).with_name("style.css")

#: Most pixels of an uploaded image, and most questions that wait for the model.
MOST_PIXELS, MOST_WAITING = 50_000_000, 32
#: Largest upload, and number of sessions whose images are kept.
LARGEST_FILE, MOST_VISITORS = "32mb", 64

_FONT = ("ui-sans-serif", "system-ui", "sans-serif")
_MONO = ("ui-monospace", "monospace")

#: State of one session: the images of the slider.
Views = list[View]


def application(page: gr.Blocks) -> FastAPI:
    """Build the web application, without gradio's footer, history and API pages."""
    plain = FastAPI(title="foveate", docs_url=None, redoc_url=None, openapi_url=None)
    return gr.mount_gradio_app(
        plain,
        page,
        path="/",
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=LARGEST_FILE,
        ssr_mode=False,
        enable_monitoring=False,
        theme=theme(),
        css_paths=[STYLE],
    )


def theme() -> gr.themes.Base:
    """Theme with calm colours and system fonts, so that nothing is downloaded."""
    return gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=_FONT, font_mono=_MONO)


def build(
    model: tuple[Any, Any],
    name: str | None,
    offered: Sequence[Choice],
    *,
    plan: str | None = None,
    examples: Sequence[tuple[str, str]] = (),
    max_new_tokens: int = 128,
) -> gr.Blocks:
    """Build the page.

    Args:
        model: model and processor, without a plan.
        name: folder or Hub id of the model; None: the embedded one.
        offered: methods to choose from.
        plan: the initial plan; by default that of the first method offered.
        examples: pairs of an image file and a question.
        max_new_tokens: length at which answers are cut off.
    """
    by_name = {choice.name: choice for choice in offered}
    first = next((choice.name for choice in offered if choice.name == "divprune"), offered[0].name if offered else None)
    start = plan or (by_name[first].plan(PERCENT) if first else "")

    def run(path: str | None, question: str, text: str) -> Generator[dict[Any, Any]]:
        """Ask with the full model and with the plan, and show each answer as soon as it is available."""
        try:
            image, wanted = _checked(path, question, text)
            yield {notice: "", answers: _answers(None, None, wanted)}
            full_model = ask(image, question, model, max_new_tokens=max_new_tokens, keep_pooling=True)
            planned = None
            if wanted is not None:
                yield {answers: _answers(full_model, None, wanted)}
                planned = ask(image, question, model, wanted, max_new_tokens=max_new_tokens)
            shown = views(full_model, planned, image)
        except Exception as error:
            yield {notice: _notice(error), answers: ""}
            return
        last = len(shown) - 1
        file, followed = Path(str(path)).name, None if wanted is None else str(wanted)
        yield {
            answers: _answers(full_model, planned, wanted),
            state: shown,
            account: gr.Column(visible=True),
            slider: gr.Slider(maximum=max(last, 1), value=last, visible=last > 0),
            overlay: shown[last].picture,
            caption: _caption(shown[last]),
            facts: _hint(shown[last]),
            charts: _charts(full_model, planned),
            python: python_line(file, question, followed, name),
            shell: shell_line(file, question, followed, name),
        }

    def step(place: float, shown: Views) -> tuple[Any, Any, Any]:
        if not shown:  # forgotten, after an hour
            return gr.skip(), gr.skip(), gr.skip()
        view = shown[min(int(place), len(shown) - 1)]
        return view.picture, _caption(view), _hint(view)

    def click(place: float, shown: Views, event: gr.SelectData) -> tuple[Any, Any]:
        if not shown:
            return gr.skip(), gr.skip()
        view = shown[min(int(place), len(shown) - 1)]
        token = view.token_at(*event.index)
        if token < 0:
            return view.picture, _hint(view)
        chosen = fact(view, token)
        return outlined(view, chosen), _fact(chosen)

    def of_method(chosen: str, percent: float) -> tuple[Any, str]:
        choice = by_name[chosen]
        return gr.Slider(visible=choice.budget != "none"), choice.plan(percent)

    def check(path: str | None) -> tuple[Any, str]:
        """Validate an uploaded image at once, before a question is asked."""
        try:
            _opened(path)
        except Exception as error:
            return None, _notice(error)
        return gr.skip(), ""

    with gr.Blocks(title="foveate", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        state = gr.State([], time_to_live=3600)
        shown = "the embedded model" if name is None else name
        gr.HTML(
            f"<h1>foveate</h1><p>{safe(shown)}: one question, with all visual tokens and with fewer.</p>",
            elem_id="head",
        )
        with gr.Row():
            with gr.Column(scale=4, min_width=320):
                image = gr.Image(
                    type="filepath", sources=["upload", "clipboard"], label="Image", height=260, elem_id="image",
                    buttons=[],
                )  # fmt: skip
                # The uploaded file is kept unchanged, and `open_image` validates it.
                image.preprocess = lambda payload: None if payload is None else payload.path
                question = gr.Textbox(label="Question", lines=1, max_lines=4, elem_id="question")
                if examples:
                    gr.Examples([list(pair) for pair in examples], [image, question], label="Examples")
                with gr.Row():
                    method = gr.Dropdown(list(by_name), value=first, label="Method", min_width=130, elem_id="method")
                    percent = gr.Slider(
                        1, 100, PERCENT, step=1, label="Tokens kept, %", min_width=130, elem_id="percent"
                    )
                text = gr.Textbox(
                    value=start, label="Plan", elem_id="plan", max_lines=3,
                    info="Set by the two fields above, or edited: divprune:50% + fastv:50%@2. Empty: full model only.",
                )  # fmt: skip
                button = gr.Button("Ask", variant="primary", elem_id="ask")
            with gr.Column(scale=7, min_width=320):
                notice = gr.HTML("", elem_id="notice")
                answers = gr.HTML(_welcome(), elem_id="answers")
                with gr.Column(visible=False) as account:
                    overlay = gr.Image(
                        format="png", interactive=False, show_label=False, buttons=["fullscreen"], elem_id="overlay",
                        height=460,
                    )  # fmt: skip
                    slider = gr.Slider(
                        0, 1, 0, step=1, label="Stage: from patches to the language model", elem_id="stage"
                    )
                    caption = gr.HTML("", elem_id="caption")
                    facts = gr.HTML("", elem_id="fact")
                    charts = gr.HTML("", elem_id="charts")
                    python = gr.Code(language="python", label="Python", interactive=False, elem_id="python", lines=3,
                                     show_line_numbers=False, wrap_lines=True)  # fmt: skip
                    shell = gr.Code(language="shell", label="Command line", interactive=False, elem_id="shell", lines=1,
                                    show_line_numbers=False, wrap_lines=True)  # fmt: skip
        # One question at a time has the model; everything else answers at once.
        outputs = [notice, answers, state, account, slider, overlay, caption, facts, charts, python, shell]
        gr.on(
            [button.click, question.submit, text.submit], run, [image, question, text], outputs,
            concurrency_limit=1, concurrency_id="model", api_visibility="private", show_progress="minimal",
        )  # fmt: skip
        quick: dict[str, Any] = {
            "concurrency_limit": None,
            "trigger_mode": "always_last",
            "api_visibility": "private",
            "show_progress": "hidden",
        }
        image.upload(check, image, [image, notice], **quick)
        slider.input(step, [slider, state], [overlay, caption, facts], **quick)
        overlay.select(click, [slider, state], [overlay, facts], **quick)
        if offered:
            gr.on([method.input, percent.input], of_method, [method, percent], [percent, text], **quick)
    page.state_session_capacity = MOST_VISITORS
    return page.queue(max_size=MOST_WAITING)


def _opened(path: str | None) -> Any:
    if path is None:
        raise FoveateError("there is no image yet: upload one, or take an example.")
    try:
        return open_image(path, max_pixels=MOST_PIXELS)
    except FoveateError as error:  # visitors know the file by its name, not by its place on the server
        raise FoveateError(str(error).replace(repr(path), repr(Path(path).name))) from None


def _checked(path: str | None, question: str, text: str) -> tuple[Any, Plan | None]:
    image = _opened(path)
    if not question.strip():
        raise FoveateError("the question is empty; ask something about the image.")
    return image, Plan.of(text) if text.strip() else None


def _notice(error: Exception) -> str:
    if not isinstance(error, FoveateError):
        log.error("a question failed", exc_info=error)
        error = FoveateError(f"foveate failed: {type(error).__name__}. See the terminal of the server for details.")
    return f'<div class="notice" role="alert">{safe(" ".join(str(error).split()))}</div>'


def _welcome() -> str:
    return (
        '<div class="answers"><div class="answer"><p class="small">Give an image and a question. Both answers, what '
        "became of every token and where the time went appear here.</p></div></div>"
    )


def _answers(full_model: Answer | None, planned: Answer | None, wanted: Plan | None) -> str:
    cards = [_card("full-model", "full model", full_model)]
    if wanted is not None:
        cards.append(_card("plan", str(wanted), planned))
    return f'<div class="answers">{"".join(cards)}</div>'


def _card(kind: str, title: str, answer: Answer | None) -> str:
    if answer is None:
        body = '<p class="text wait">...</p>'
    else:
        total = answer.times["total"]
        seconds = f"{total:.2f} s" if total >= 1 else f"{1000 * total:.0f} ms"
        body = f'<p class="text">{safe(answer.text or "(no answer)")}</p>'
        body += f'<p class="small">{answer.tokens.read} image tokens read, {seconds}</p>'
        notes = dict.fromkeys(note for image in answer.selection for note in image["notes"])
        body += "".join(f'<p class="small">{safe(note)}</p>' for note in notes)
    return f'<div class="answer {kind}"><h3>{safe(title)}</h3>{body}</div>'


def _caption(view: View) -> str:
    return f"<p><strong>{safe(view.title)}</strong>. {safe(view.caption)}</p>"


def _hint(view: View) -> str:
    tokens = bool((view.tokens >= 0).any())
    return '<div class="fact"><p>Click a token in the picture to see where it comes from.</p></div>' if tokens else ""


def _fact(chosen: Fact) -> str:
    lines = "".join(f"<dt>{safe(name)}</dt><dd>{safe(value)}</dd>" for name, value in chosen.lines)
    return f'<div class="fact"><h3>{safe(chosen.title)}</h3><dl>{lines}</dl></div>'


def _charts(full_model: Answer, planned: Answer | None) -> str:
    tokens = as_html("Image tokens", token_bars(full_model, planned))
    times = as_html("Time, one run each", time_bars(full_model, planned))
    return f'<div class="charts">{tokens}{times}</div>'
