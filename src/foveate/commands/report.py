"""`foveate report`: static pages from result files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from foveate.commands.options import Json, refuse_others
from foveate.console import console, notes, print_json

EXAMPLES = """
    foveate report benchmarks/results/accuracy-embedded.json -o report
    foveate report accuracy.json speed.json joint.json -o report --pictures-model path/or/hub-id
    foveate report selection-cpu.json -o report --no-pictures
"""


def report(
    context: typer.Context,
    results: Annotated[
        list[Path],
        typer.Argument(
            help="JSON files of `foveate bench accuracy`, `speed`, `joint`, `trained` or `released`.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Folder of the report; its start page is index.html.", show_default=False),
    ],
    title: Annotated[str | None, typer.Option(help="Title of the page.", show_default=False)] = None,
    pictures: Annotated[
        bool,
        typer.Option(
            "--pictures/--no-pictures", help="Show the tokens that every method keeps of the same six images."
        ),
    ] = True,
    pictures_model: Annotated[
        list[str] | None,
        typer.Option(
            help="Model for these images: folder, Hub id or embedded. If repeated, each method is shown on the first "
            "model that supports it.",
            show_default="the embedded model",
        ),
    ] = None,
    redraw: Annotated[bool, typer.Option("--redraw", help="Redraw images that are in the folder already.")] = False,
    as_json: Json = False,
) -> None:
    """Build a static report from results: sortable tables, plots with the Pareto front, a page for every method.

    The pages are self-contained: they open from disk and load nothing from other servers. Plots are also saved as PNG
    files. Results of the earlier `foveate bench selection` are shown as speed. The images take a few seconds per method
    in the first run; later runs reuse them.
    """
    from foveate.report import build
    from foveate.report.building import TITLE

    if not pictures:
        refuse_others(context, "--no-pictures", "pictures", "results", "output", "title", "as_json")
    made = build(
        results,
        output,
        title=title or TITLE,
        pictures=pictures,
        pictures_models=pictures_model or (),
        redraw=redraw,
        report=notes.print,
    )
    if as_json:
        print_json(made)
        return
    console.print(f"{made['pages']} pages, {len(made['plots'])} plots", markup=False)
    for method, reason in made["pictures"]["impossible"].items():
        console.print(f"no images of {method}: {reason}", markup=False)
    console.print(f"written: {made['page']}", markup=False)
