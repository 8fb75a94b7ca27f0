"""Layout and event handlers of the app. Needs the extra `app`."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import gradio as gr  # ty: ignore[import-not-found]  (has an environment of its own)
from fastapi import FastAPI

from foveate.answering import ask
from foveate.app import cards
from foveate.app.bars import safe
from foveate.app.by_hand import ALL_TOKENS, Board, ByHand
from foveate.app.choices import FRAMES, MOST_FRAMES, PERCENT, Choice, samplers, settings_of, with_frames
from foveate.app.comparison import compare, contenders
from foveate.app.lines import python_line, shell_line
from foveate.app.session import Session, Shown, answerer, labels, notice_of, opened, opened_clip, pictured
from foveate.app.views import fact, outlined
from foveate.core.errors import FoveateError
from foveate.core.plan import Plan

STYLE = Path(__file__).with_name("style.css")

#: Most questions that wait for the model.
MOST_WAITING = 32
#: Largest upload, and number of sessions whose images are kept.
LARGEST_FILE, MOST_VISITORS = "32mb", 64

#: What is asked about.
IMAGE, CLIP = "image", "clip"
ONLY_IMAGES = "single tokens are chosen by hand in an image alone; choose a plan for a clip."

_FONT = ("ui-sans-serif", "system-ui", "sans-serif")
_MONO = ("ui-monospace", "monospace")

#: Brings the results into view where they lie below the button, as on a phone.
_SHOW_RESULTS = """() => {
  const results = document.getElementById("results");
  if (results.getBoundingClientRect().top > window.innerHeight / 2) results.scrollIntoView({behavior: "smooth"});
}"""


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


def given(kind: str, path: str | None) -> Any:
    """Return the uploaded image, or the bytes of the uploaded clip.

    Raises:
        FoveateError: there is none, or it is not one that foveate reads.
    """
    return opened_clip(path) if kind == CLIP else opened(path)


def theme() -> gr.themes.Base:
    """Theme with calm colours and system fonts, so that nothing is downloaded."""
    return gr.themes.Default(
        primary_hue="blue", neutral_hue="slate", font=_FONT, font_mono=_MONO, spacing_size="sm", text_size="md"
    )


def build(
    model: tuple[Any, Any],
    name: str | None,
    offered: Sequence[Choice],
    *,
    plan: str | None = None,
    examples: Sequence[tuple[str, str]] = (),
    clip_examples: Sequence[tuple[str, str]] | None = None,
    max_new_tokens: int = 128,
) -> gr.Blocks:
    """Build the page.

    Args:
        model: model and processor, without a plan.
        name: folder or Hub id of the model; None: the embedded one.
        offered: methods to choose from.
        plan: the initial plan; by default that of the first method offered.
        examples: pairs of an image file and a question.
        clip_examples: pairs of a video file and a question; None: the model reads images alone.
        max_new_tokens: length at which answers are cut off.
    """
    by_name = {choice.name: choice for choice in offered}
    first = next((choice.name for choice in offered if choice.name == "divprune"), offered[0].name if offered else None)
    start = plan or (by_name[first].plan(PERCENT) if first else "")
    first, kept = settings_of(start, offered) or (first, PERCENT)
    clips = clip_examples is not None
    first_kind = CLIP if clips and plan and Plan.of(plan).frame_step else IMAGE
    welcome = cards.WELCOME_CLIP if clips else cards.WELCOME
    layers = model[0].config.get_text_config(decoder=True).num_hidden_layers

    def cleared(message: str = "", answered: str = welcome) -> dict[Any, Any]:
        """Remove all results, so that none stands next to a question that it does not answer."""
        return {
            notice: message,
            answers: answered,
            state: None,
            stage: gr.Radio([], value=None, visible=False),
            overlay: gr.Image(None, visible=False),
            caption: cards.NOTHING_SHOWN,
            facts: "",
            charts: cards.NOT_MEASURED,
            python: gr.Code("", visible=False),
            shell: gr.Code("", visible=False),
        }

    def run(
        kind: str, image: str | None, clip: str | None, question: str, text: str, baselines: bool, session: Session
    ) -> Generator[dict[Any, Any]]:
        """Compare the full model with a plan."""
        try:
            wanted = Plan.of(text) if text.strip() else None
        except Exception as error:
            yield cleared(notice_of(error), "")
            return
        yield from results(kind, clip if kind == CLIP else image, question, wanted, None, baselines, session)

    def run_by_hand(
        kind: str, path: str | None, question: str, on: Board | None, baselines: bool, session: Session
    ) -> Generator[dict[Any, Any]]:
        """Compare the full model with the tokens that were chosen by hand."""
        try:
            if kind == CLIP:
                raise FoveateError(ONLY_IMAGES)
            if on is None or on.path != path:
                raise FoveateError("no tokens are chosen for this image yet; click them in the picture.")
            chosen = on.method
        except Exception as error:
            yield cleared(notice_of(error), "")
            return
        yield from results(kind, path, question, Plan.of(chosen), chosen, baselines, session)

    def results(
        kind: str,
        path: str | None,
        question: str,
        wanted: Plan | None,
        chosen: ByHand | None,
        baselines: bool,
        session: Session,
    ) -> Generator[dict[Any, Any]]:
        """Show answers and times as they come, and then the pictures, which are made in passes of their own."""
        session.file, shown = path, None
        try:
            visual = given(kind, path)
            if not question.strip():
                raise FoveateError(f"the question is empty; ask something about the {kind}.")
            title = None if chosen is None else f"{len(chosen.kept)} tokens chosen by hand"
            compared = contenders(wanted, title, baselines=baselines, clip=kind == CLIP)
            yield cleared(answered=cards.answers(question, compared))
            for step in compare(answerer(model, visual, question, max_new_tokens), compared, layers):
                if session.file != path:
                    break
                compared = step
                yield {answers: cards.answers(question, compared)}
            if session.file == path:
                shown = pictured(model, visual, question, compared)
        except Exception as error:
            yield cleared(notice_of(error), "") if session.file == path else {answers: gr.skip()}
            return
        if shown is None or session.file != path:  # another was given; gradio repeats what a generator yields last
            yield {answers: gr.skip()}
            return
        titles = [view.title for view in shown.views]
        file, followed = Path(str(path)).name, chosen or (None if wanted is None else str(wanted))
        yield {
            state: shown,
            stage: gr.Radio(titles, value=titles[-1], visible=len(titles) > 1),
            overlay: gr.Image(shown.views[-1].picture, visible=True),
            caption: cards.caption(shown.views[-1]),
            facts: cards.hint(shown.views[-1]),
            charts: cards.charts(compared),
            python: gr.Code(python_line(file, question, followed, name, max_new_tokens), visible=True),
            shell: gr.Code(shell_line(file, question, followed, name, max_new_tokens), visible=True),
        }

    def step(place: int | None, shown: Shown | None) -> tuple[Any, Any, Any]:
        if shown is None:  # forgotten, after an hour
            return gr.skip(), gr.skip(), gr.skip()
        view = shown.at(place)
        return view.picture, cards.caption(view), cards.hint(view)

    def click(place: int | None, shown: Shown | None, event: gr.SelectData) -> tuple[Any, Any]:
        if shown is None:
            return gr.skip(), gr.skip()
        view = shown.at(place)
        token = view.token_at(*event.index)
        if token < 0:
            return view.picture, cards.hint(view)
        chosen = fact(view, token)
        return outlined(view, chosen), cards.details(chosen)

    def open_board(kind: str, path: str, session: Session) -> dict[Any, Any]:
        """Lay out the tokens of the image for choosing, in a pass of its own."""
        try:
            if kind == CLIP:
                raise FoveateError(ONLY_IMAGES)
            session.file = path
            image = opened(path)
            opening = drawn(Board.of(ask(image, "?", model, ALL_TOKENS, max_new_tokens=1), image, path))
        except Exception as error:
            opening = drawn(None, notice_of(error))
        if kind == IMAGE and session.file != path:  # another image was given meanwhile
            return {board: gr.skip()}
        return opening

    def drawn(on: Board | None, message: str = cards.NO_BOARD) -> dict[Any, Any]:
        """Show the tokens for choosing, or why there are none."""
        return {
            board: on,
            board_picture: gr.Image(None if on is None else on.picture, visible=on is not None),
            board_caption: message if on is None else cards.board_caption(on),
            board_buttons: gr.Row(visible=on is not None),
            open_button: gr.Button(visible=on is None),
        }

    def pick(on: Board | None, event: gr.SelectData) -> dict[Any, Any]:
        return drawn(None if on is None else on.clicked(*event.index))

    def keep_all(on: Board | None) -> dict[Any, Any]:
        return drawn(None if on is None else on.keeping(range(on.count)))

    def drop_all(on: Board | None) -> dict[Any, Any]:
        return drawn(None if on is None else on.keeping(()))

    def like_the_plan(on: Board | None, shown: Shown | None) -> dict[Any, Any]:
        """Start from the tokens of the last plan, where it was asked about this image."""
        if on is None or shown is None or shown.kept is None:
            return {notice: notice_of(FoveateError("no plan has chosen tokens of this image yet; ask with one first."))}
        return drawn(on.keeping(shown.kept)) | {notice: ""}

    def written(kind: str, chosen: str, percent: float, sampler: str, frames: float) -> str:
        """Return the plan that the controls describe."""
        plan = by_name[chosen].plan(percent) if chosen else ""
        return with_frames(plan, sampler, frames) if kind == CLIP else plan

    def of_method(kind: str, chosen: str, percent: float, sampler: str, frames: float) -> tuple[Any, Any, str]:
        budget = bool(chosen) and by_name[chosen].budget != "none"
        plan = written(kind, chosen, percent, sampler, frames)
        return gr.Slider(visible=budget), gr.Slider(visible=bool(sampler)), plan

    def check(path: str | None) -> tuple[Any, str]:
        """Validate an uploaded image at once, before a question is asked."""
        return checked(IMAGE, path)

    def check_clip(path: str | None) -> tuple[Any, str]:
        """Validate an uploaded clip at once, before a question is asked."""
        return checked(CLIP, path)

    def checked(kind: str, path: str | None) -> tuple[Any, str]:
        try:
            given(kind, path)
        except Exception as error:
            return None, notice_of(error)
        return gr.skip(), ""

    def to_image(*others: Any) -> dict[Any, Any]:
        return switched(IMAGE, *others)

    def to_clip(*others: Any) -> dict[Any, Any]:
        return switched(CLIP, *others)

    def switched(
        now: str, before: str, image: str | None, clip: str | None, session: Session, text: str, *controls: Any
    ) -> dict[Any, Any]:
        """Ask about the other input from now on; a plan that was typed stays."""
        if now == before:
            return {notice: gr.skip()}
        generated = text == written(before, *controls)
        plan = {plan_text: written(now, *controls)} if generated else {}
        return {asked_about: now} | plan | changed(now, image, clip, session)

    def changed(kind: str, image: str | None, clip: str | None, session: Session) -> dict[Any, Any]:
        """Forget what was shown of another image or clip."""
        path = clip if kind == CLIP else image
        if session.file == path:  # a question about this one came first
            return {notice: gr.skip()}
        session.file = path
        forgotten = cleared() | drawn(None)
        del forgotten[notice]  # it may say what is wrong with the new one
        return forgotten

    with gr.Blocks(title="foveate", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        state = gr.State(None, time_to_live=3600)
        board = gr.State(None, time_to_live=3600)
        session = gr.State(Session())
        asked_about = gr.State(first_kind)
        called = "the embedded model" if name is None else name
        gr.HTML(
            f"<h1>foveate</h1><p>{safe(called)}: one question, with all visual tokens and with fewer.</p>",
            elem_id="head",
        )
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=4, min_width=320):
                question = gr.Textbox(label="Question", lines=1, max_lines=4, elem_id="question", render=False)
                # The uploaded files are kept unchanged, and `given` validates them.
                with gr.Tabs(elem_id="given", selected=first_kind) if clips else nullcontext():
                    with gr.Tab("Image", id=IMAGE) if clips else nullcontext() as image_tab:
                        image = gr.Image(
                            type="filepath", sources=["upload", "clipboard"], label="Image", height=240,
                            elem_id="image", buttons=[],
                        )  # fmt: skip
                        image.preprocess = lambda payload: None if payload is None else payload.path
                        if examples:
                            gr.Examples(
                                [list(pair) for pair in examples], [image, question], label="Examples",
                                elem_id="examples", example_labels=labels(examples), examples_per_page=len(examples),
                            )  # fmt: skip
                    with gr.Tab("Clip", id=CLIP) if clips else nullcontext() as clip_tab:
                        clip = gr.Video(
                            sources=["upload"], label="Clip", height=240, elem_id="clip", buttons=[], visible=clips,
                        )  # fmt: skip
                        clip.preprocess = lambda payload: None if payload is None else payload.path
                        if clip_examples:
                            gr.Examples(
                                [list(pair) for pair in clip_examples], [clip, question], label="Examples",
                                elem_id="clip-examples", example_labels=labels(clip_examples),
                            )  # fmt: skip
                        with gr.Row(visible=clips):
                            sampler = gr.Dropdown(
                                [("two per second", ""), *((name, name) for name in samplers())], value="",
                                label="Frames", min_width=130, elem_id="sampler",
                            )  # fmt: skip
                            frames = gr.Slider(1, MOST_FRAMES, FRAMES, step=1, label="At most", min_width=130,
                                               elem_id="frames", visible=False)  # fmt: skip
                question.render()
                with gr.Row():
                    method = gr.Dropdown(list(by_name), value=first, label="Method", min_width=130, elem_id="method")
                    percent = gr.Slider(1, 100, kept, step=1, label="Kept, %", min_width=130, elem_id="percent")
                plan_text = gr.Textbox(
                    value=start, label="Plan", elem_id="plan", max_lines=3,
                    info="Set above, or typed. Empty: only the full model.", placeholder="divprune:50% + fastv:50%@2",
                )  # fmt: skip
                baselines = gr.Checkbox(
                    True,
                    label=f"Also random tokens, smaller image{' or fewer frames' if clips else ''}",
                    container=False,
                    elem_id="baselines",
                )
                button = gr.Button("Ask", variant="primary", elem_id="ask")
            with gr.Column(scale=7, min_width=320, elem_id="results"):
                notice = gr.HTML("", elem_id="notice", padding=False)
                answers = gr.HTML(welcome, elem_id="answers", padding=False)
                with gr.Tabs(overflow_behavior="wrap"):
                    with gr.Tab("Picture", id="picture"):
                        stage = gr.Radio([], type="index", show_label=False, container=False, visible=False,
                                         elem_id="stage")  # fmt: skip
                        caption = gr.HTML(cards.NOTHING_SHOWN, elem_id="caption", padding=False)
                        overlay = gr.Image(
                            format="png", interactive=False, show_label=False, buttons=["fullscreen"], height=440,
                            visible=False, elem_id="overlay",
                        )  # fmt: skip
                        facts = gr.HTML("", elem_id="fact", padding=False)
                    with gr.Tab("By hand", id="by-hand"):
                        board_caption = gr.HTML(cards.NO_BOARD, elem_id="board-caption", padding=False)
                        open_button = gr.Button("Show the tokens", size="md", elem_id="open-board")
                        with gr.Row(visible=False, elem_id="board-buttons") as board_buttons:
                            all_button = gr.Button("Keep all", size="md", min_width=90)
                            none_button = gr.Button("Drop all", size="md", min_width=90)
                            plan_button = gr.Button("As the plan", size="md", min_width=90)
                            hand_button = gr.Button(
                                "Ask with these", variant="primary", size="md", min_width=140, elem_id="ask-by-hand"
                            )
                        board_picture = gr.Image(
                            format="png", interactive=False, show_label=False, buttons=["fullscreen"], height=440,
                            visible=False, elem_id="board",
                        )  # fmt: skip
                    with gr.Tab("Times", id="times"):
                        charts = gr.HTML(cards.NOT_MEASURED, elem_id="charts", padding=False)
                    with gr.Tab("Code", id="code"):
                        python = gr.Code(language="python", label="Python", interactive=False, elem_id="python",
                                         lines=3, show_line_numbers=False, wrap_lines=True, visible=False)  # fmt: skip
                        shell = gr.Code(language="shell", label="Command line", interactive=False, elem_id="shell",
                                        lines=1, show_line_numbers=False, wrap_lines=True, visible=False)  # fmt: skip
        outputs = [notice, answers, state, stage, overlay, caption, facts, charts, python, shell]
        board_outputs = [board, board_picture, board_caption, board_buttons, open_button]
        # One question at a time has the model; everything else answers at once.
        on_model: dict[str, Any] = {
            "concurrency_limit": 1,
            "concurrency_id": "model",
            "api_visibility": "private",
            "show_progress": "minimal",
        }
        quick: dict[str, Any] = {
            "concurrency_limit": None,
            "trigger_mode": "always_last",
            "api_visibility": "private",
            "show_progress": "hidden",
        }
        asking = [button.click, question.submit, plan_text.submit]
        source = [asked_about, image, clip]
        gr.on(asking, run, [*source, question, plan_text, baselines, session], outputs, **on_model)
        by_hand = [asked_about, image, question, board, baselines, session]
        hand_button.click(run_by_hand, by_hand, outputs, **on_model)
        gr.on([*asking, hand_button.click], None, js=_SHOW_RESULTS)
        image.upload(check, image, [image, notice], **quick)
        clip.upload(check_clip, clip, [clip, notice], **quick)
        gr.on([image.change, clip.change], changed, [*source, session], [*outputs, *board_outputs], **quick)
        controls = [method, percent, sampler, frames]
        for tab, switch in ((image_tab, to_image), (clip_tab, to_clip)):
            if tab is not None:
                changing = [asked_about, plan_text, *outputs, *board_outputs]
                tab.select(switch, [*source, session, plan_text, *controls], changing, **quick)
        stage.input(step, [stage, state], [overlay, caption, facts], **quick)
        overlay.select(click, [stage, state], [overlay, facts], **quick)
        # A later click starts from the result of an earlier one.
        in_turn = quick | {"concurrency_limit": 1, "concurrency_id": "board", "trigger_mode": "multiple"}
        open_button.click(open_board, [asked_about, image, session], board_outputs, **on_model)
        board_picture.select(pick, board, board_outputs, **in_turn)
        all_button.click(keep_all, board, board_outputs, **in_turn)
        none_button.click(drop_all, board, board_outputs, **in_turn)
        plan_button.click(like_the_plan, [board, state], [*board_outputs, notice], **in_turn)
        if offered:
            moved = [control.input for control in controls]
            gr.on(moved, of_method, [asked_about, *controls], [percent, frames, plan_text], **quick)
    page.state_session_capacity = MOST_VISITORS
    return page.queue(max_size=MOST_WAITING)
