"""`foveate ask`: answer a question about images or a clip."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveate import shipped
from foveate.commands.options import (
    AttnImplementation,
    DeviceMap,
    Dtype,
    HubDevice,
    Json,
    Revision,
    loading_options,
)
from foveate.console import console, print_json
from foveate.core.errors import FoveateError

if TYPE_CHECKING:
    from foveate.answering import Answer

EXAMPLES = """
    foveate ask --example receipt "What is the total?"
    foveate ask examples/receipt.png "What is the total?" --plan divprune:25% --picture out.png
    foveate ask scan.jpg "Who signed it?" --model path/to/folder --json
    foveate ask a.png https://example.org/b.png "Which is larger?" --system "Answer in one word."
    foveate ask clip.mp4 "What happens?" --model Qwen/Qwen2.5-VL-7B-Instruct --dtype bfloat16 --device-map auto
    foveate ask clip.mp4 "Who scores?" --model Qwen/Qwen3-VL-8B-Instruct --plan "scene:16 + divprune:25%"
    foveate ask clip.mp4 "Why does it stop?" --model Qwen/Qwen3-VL-8B-Instruct --plan dcode --decompose
    foveate ask examples/receipt.png "What is the total?" --draft draft
    foveate ask page.png "What is the number?" --model path/to/folder --plan visionthink
"""

#: Options that may stand without a value, and the value that they then have.
BARE = {"--example": "list"}

PICTURE_FORMATS = (".png", ".jpg", ".jpeg", ".webp")


def ask(
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[IMAGE]...",
            help="Image files (PNG, JPEG, WebP, GIF, TIFF, BMP and others) or one video file; http(s) addresses and "
            "data URIs of them.",
            show_default=False,
        ),
    ] = None,
    question: Annotated[
        str | None, typer.Argument(metavar="QUESTION", help="Question, in quotes.", show_default=False)
    ] = None,
    example: Annotated[
        str | None,
        typer.Option(
            metavar="[NAME]",
            help="Ask about an image of the package, such as receipt; without a name: list them.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Folder or Hub id of an image-text-to-text model.", show_default="the embedded model"),
    ] = None,
    plan: Annotated[
        str | None,
        typer.Option(
            help="Plan of token compression, such as 'divprune:25%', or visionthink for a model that was trained to "
            "ask for more of an image (see foveate methods).",
            show_default="the plan saved with the model, if any",
        ),
    ] = None,
    system: Annotated[
        str | None,
        typer.Option(help="System prompt, if the model's chat template has a place for it.", show_default=False),
    ] = None,
    decompose: Annotated[
        bool,
        typer.Option(
            "--decompose",
            help="Ask about a clip in steps: the model writes simpler questions, which are asked first, and reads the "
            "answers before the question.",
        ),
    ] = False,
    draft: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a draft model for speculative decoding (see foveate train-method).",
            show_default=False,
        ),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(
            help="Save a figure of the image or the frames, kept and merged tokens, and times (.png).",
            show_default=False,
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum number of tokens of the answer.")] = 128,
    dtype: Dtype = "auto",
    device: HubDevice = None,
    device_map: DeviceMap = None,
    attn_implementation: AttnImplementation = None,
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Answer a question about images or a clip, and report visual tokens and timings.

    The answer is streamed. It is followed by the size of the image, its grid of tokens at every stage of the vision
    transformer and after each step of a plan, the number of image tokens in the layers of the language model, compared
    with the same model without a plan, and the time of each part: preprocess (open, resize, cut into patches), encoder,
    connector, prefill and decode. Decoding is greedy, so that the same question gets the same answer.

    Several images are read in their order. An address may give an image of 20 MiB in 30 seconds, or a video of 200 MiB
    in 300 seconds. Of a clip, up to 32 frames are read, or those that the plan chooses (scene:16), by models with
    video; this needs PyAV and torchvision (foveate[video]). With --decompose, sub-questions and their answers are
    printed before the answer; tokens and times are those of the answer alone.
    """
    if example == BARE["--example"]:
        _list_examples(as_json)
        return
    sources: list[Any] = [*(images or [])]
    if example is not None:
        path = shipped.example(example)
        if question is None:
            first = next(one.questions[0][0] for one in shipped.examples() if one.name == example)
            raise FoveateError(f"a question about the example is missing, such as {first!r}.")
        sources.insert(0, str(path))
    if question is None or not sources:
        raise FoveateError(
            "Missing argument: give an image and a question, such as foveate ask photo.jpg 'What does the sign say?'."
        )
    if picture is not None:
        _check_picture(picture, len(sources))
    from foveate.answering import ask as ask_model
    from foveate.answering import ask_decomposed
    from foveate.answering.asking import local

    if picture is not None:
        sources = [local(source) for source in sources]  # an address is fetched once, for the answer and the figure
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "stream": None if as_json else _print_piece,
        "draft": draft,
        "system": system,
        **loading_options(revision, attn_implementation, device_map, dtype=dtype, device=device),
    }
    if decompose:
        on_step = None if as_json else _print_step
        decomposed = ask_decomposed(sources, question, model, plan, on_step=on_step, **options)
        answer, steps, document = decomposed.answer, decomposed.steps, decomposed.to_dict()
    else:
        answer = ask_model(sources, question, model, plan, keep_pooling=picture is not None, **options)
        steps, document = None, answer.to_dict()
    if picture is not None:
        from foveate.visualization.answer import draw_answer

        draw_answer(answer, sources[0]).save(picture)
    if as_json:
        print_json(document | {"picture": str(picture) if picture else None})
        return
    console.print()
    _print_report(answer, steps)
    if picture is not None:
        console.print(f"picture   {picture}", markup=False, soft_wrap=True)


def _steps(steps: tuple[Answer, ...]) -> str:
    if not steps:
        return "none: the model wrote no question for this one"
    seconds = sum(step.times["total"] for step in steps)
    return f"{len(steps)} sub-questions in {1000 * seconds:.0f} ms, not counted above; the model read their answers too"


def _list_examples(as_json: bool) -> None:
    """Print the images of the package with questions about them."""
    if as_json:
        rows = [
            {
                "name": one.name,
                "path": str(shipped.example(one.name)),
                "questions": [question for question, _ in one.questions],
            }
            for one in shipped.examples()
        ]
        print_json({"examples": rows})
        return
    for one in shipped.examples():
        console.print(f"{one.name:9} {shipped.example(one.name)}", markup=False, soft_wrap=True)
        for question, _ in one.questions:
            console.print(f"{'':9} foveate ask --example {one.name} {question!r}", markup=False, soft_wrap=True)


def _check_picture(picture: Path, images: int) -> None:
    """Raise FoveateError before the model runs if the figure cannot be drawn or written."""
    if images > 1:
        raise FoveateError("--picture shows one image; leave it out for several.")
    if picture.suffix.lower() not in PICTURE_FORMATS:
        raise FoveateError(
            f"cannot write the figure {str(picture)!r}: its name must end in {', '.join(PICTURE_FORMATS)}."
        )
    if picture.is_dir() or not picture.parent.is_dir():
        raise FoveateError(f"cannot write the figure {str(picture)!r}: there is no folder {str(picture.parent)!r}.")


def _print_piece(text: str) -> None:
    console.print(printable(text), end="", markup=False, soft_wrap=True)


def _print_step(step: Answer) -> None:
    """Print a sub-question and its answer."""
    for name, text in (("question", step.question), ("answer", step.text)):
        console.print(f"{name:9} {printable(text)}", markup=False, soft_wrap=True)
    console.print()


def printable(text: str) -> str:
    """Remove control characters, which a terminal would interpret."""
    return "".join(char if char.isprintable() or char == "\n" else "\ufffd" for char in text)


def _print_report(answer: Answer, steps: tuple[Answer, ...] | None) -> None:
    """Print tokens and times of an answer; `steps`: those of a question that was asked in steps."""
    from rich.table import Table

    from foveate.runtime.report import NOTHING_LEFT_OUT

    sizes = ", ".join(f"{width} x {height}" for width, height in answer.image_sizes)
    kind = "image" if answer.image_size else "images" if answer.frames is None else "clip"
    frames = f"{answer.frames} frames of " if answer.frames is not None else ""
    resized = ""
    if answer.processed_size not in (None, answer.image_size):
        resized = f", resized to {answer.processed_size[0]} x {answer.processed_size[1]}"  # type: ignore[index]
    console.print()
    tokens, times = answer.tokens, answer.times
    parts = ", ".join(f"{part} {1000 * seconds:.0f}" for part, seconds in times.items() if part != "total")
    plan = {"plan": answer.plan} if answer.plan else {}
    if drafted := answer.draft:
        length = f"{drafted['acceptance_length']:.2f} tokens for each"
        plan["draft"] = f"{drafted['tokens']} tokens in {drafted['passes']} passes after the prompt's, {length}"
    for name, value in {
        kind: f"{frames}{sizes} px{resized}",
        "tokens": f"the language model reads {tokens.summary(f'the {kind}')}; and {tokens.text} of text",
        "time": f"{1000 * times['total']:.0f} ms on {answer.device}: {parts}",
        **({} if steps is None else {"steps": _steps(steps)}),
        **plan,
        **{
            f"turn {number}": f"{turn.image_tokens} image tokens, {turn.generated} written"
            + ("" if turn.call is None else f"; the model calls {turn.call['name']} {turn.call['arguments']}")
            for number, turn in enumerate(answer.turns, 1)
        },
    }.items():
        console.print(f"{name:9} {value}", markup=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column, justify in (
        ("stage", "left"),
        ("grid", "right"),
        ("tokens", "right"),
        ("pixels", "right"),
        ("made by", "left"),
    ):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for stage in answer.stages:
        grid = f"{stage.grid[0]} x {stage.grid[1]}" if stage.grid else "-"
        pixels = f"{stage.size[0]} x {stage.size[1]}" if stage.size else "-"
        table.add_row(stage.name, grid, str(stage.tokens), pixels, stage.detail)
    console.print(table)
    inert = [f"{answer.plan}: {NOTHING_LEFT_OUT}"] if answer.inert else []
    for warning in answer.warnings:
        console.print(f"warning   {warning}", markup=False, soft_wrap=True)
    for note in dict.fromkeys([*inert, *(note for image in answer.selection for note in image["notes"])]):
        console.print(f"note      {note}", markup=False, soft_wrap=True)
