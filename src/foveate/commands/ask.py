"""`foveate ask`: answer a question about an image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foveate.commands.options import Json
from foveate.console import console, print_json
from foveate.core.errors import FoveateError

if TYPE_CHECKING:
    from foveate.answering import Answer

EXAMPLES = """
    foveate ask examples/receipt.png "What is the total?"
    foveate ask examples/chart.png "Which month had the most visitors?" --picture out.png
    foveate ask examples/receipt.png "What is the total?" --plan divprune:25% --picture out.png
    foveate ask scan.jpg "Who signed it?" --model path/to/folder --json
    foveate ask examples/receipt.png "What is the total?" --draft draft
    foveate ask photo.jpg "What does the sign say?" --model owner/name-on-the-hub
"""

PICTURE_FORMATS = (".png", ".jpg", ".jpeg", ".webp")


def ask(
    image: Annotated[
        str, typer.Argument(help="Image file: PNG, JPEG, WebP, GIF, TIFF, BMP and others.", show_default=False)
    ],
    question: Annotated[str, typer.Argument(help="Question, in quotes.", show_default=False)],
    model: Annotated[
        str | None,
        typer.Option(help="Folder or Hub id of an image-text-to-text model.", show_default="the embedded model"),
    ] = None,
    plan: Annotated[
        str | None,
        typer.Option(
            help="Plan of token compression, such as 'divprune:25%' (see foveate methods).",
            show_default="the plan saved with the model, if any",
        ),
    ] = None,
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
            help="Save a figure of the image, its windows, kept and merged tokens, and times (.png).",
            show_default=False,
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum number of tokens of the answer.")] = 128,
    as_json: Json = False,
) -> None:
    """Answer a question about an image, and report its visual tokens and timings.

    The answer is streamed. It is followed by the size of the image, its grid of tokens at every stage of the vision
    transformer and after each step of a plan, the number of tokens in the language model with and without merging, and
    the time of each part: preprocess (open, resize, cut into patches), encoder, connector, prefill and decode. Decoding
    is greedy, so that the same question gets the same answer.
    """
    if picture is not None:
        _check_picture(picture)
    from foveate.answering import ask as ask_model

    answer = ask_model(
        image,
        question,
        model,
        plan,
        max_new_tokens=max_new_tokens,
        stream=None if as_json else _print_piece,
        keep_pooling=picture is not None,
        draft=draft,
    )
    if picture is not None:
        from foveate.visualization.answer import draw_answer

        draw_answer(answer, image).save(picture)
    if as_json:
        print_json(answer.to_dict() | {"picture": str(picture) if picture else None})
        return
    console.print()
    _print_report(answer)
    if picture is not None:
        console.print(f"picture   {picture}", markup=False, soft_wrap=True)


def _check_picture(picture: Path) -> None:
    """Raise FoveateError before the model runs if the image cannot be written."""
    if picture.suffix.lower() not in PICTURE_FORMATS:
        raise FoveateError(
            f"cannot write the figure {str(picture)!r}: its name must end in {', '.join(PICTURE_FORMATS)}."
        )
    if picture.is_dir() or not picture.parent.is_dir():
        raise FoveateError(f"cannot write the figure {str(picture)!r}: there is no folder {str(picture.parent)!r}.")


def _print_piece(text: str) -> None:
    console.print(printable(text), end="", markup=False, soft_wrap=True)


def printable(text: str) -> str:
    """Remove control characters, which a terminal would interpret."""
    return "".join(char if char.isprintable() or char == "\n" else "\ufffd" for char in text)


def _print_report(answer: Answer) -> None:
    from rich.table import Table

    from foveate.runtime.report import NOTHING_LEFT_OUT

    width, height = answer.image_size
    resized = ""
    if answer.processed_size not in (None, answer.image_size):
        resized = f", resized to {answer.processed_size[0]} x {answer.processed_size[1]}"  # type: ignore[index]
    console.print()
    tokens, times = answer.tokens, answer.times
    fewer = f", {tokens.unmerged / tokens.read:.3g} times fewer than {tokens.unmerged} patches" if tokens.read else ""
    parts = ", ".join(f"{part} {1000 * seconds:.0f}" for part, seconds in times.items() if part != "total")
    plan = {"plan": answer.plan} if answer.plan else {}
    if drafted := answer.draft:
        length = f"{drafted['acceptance_length']:.2f} tokens for each"
        plan["draft"] = f"{drafted['tokens']} tokens in {drafted['passes']} passes after the prompt's, {length}"
    for name, value in {
        "image": f"{width} x {height} px{resized}",
        "tokens": f"the language model reads {tokens.read} of the image{fewer}, and {tokens.text} of text",
        "time": f"{1000 * times['total']:.0f} ms on {answer.device}: {parts}",
        **plan,
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
    for note in dict.fromkeys([*inert, *(note for image in answer.selection for note in image["notes"])]):
        console.print(f"note      {note}", markup=False, soft_wrap=True)
