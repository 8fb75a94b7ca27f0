"""`foveate bench avsr`: word error of audio-visual speech recognizers over noise and compression rate."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from foveate import shipped
from foveate.commands.lists import names_in
from foveate.commands.options import MaxMinutes, ResultAsJson
from foveate.console import command_line, console, notes, print_json

EXAMPLES = """
    foveate bench avsr --quick
    foveate bench avsr --only audio-4,video-2,audio-visual-4-2
    foveate bench avsr --picture avsr.png
    foveate bench avsr --recipe recipe:avsr --steps 2000
"""

RESULT, RUNS = Path("benchmarks/results/avsr.json"), Path("runs/avsr")
QUICK_RUNS = Path("runs/avsr-quick")


def avsr(
    only: Annotated[
        str | None,
        typer.Option(help="Comma-separated trainings, such as audio-4,mome; all.", show_default=False),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Two trainings of two steps and few utterances, to try the command.")
    ] = False,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="JSON file of settings, or recipe:avsr of the package; the built-in ones, which are the same, by "
            "default.",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of projectors and adapters.", show_default="1000")
    ] = None,
    utterances: Annotated[
        int | None, typer.Option(min=1, help="Utterances of the training set.", show_default="3000")
    ] = None,
    encoder_steps: Annotated[int | None, typer.Option(min=1, help="Steps of the encoders.", show_default="400")] = None,
    text_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of the language model.", show_default="1200")
    ] = None,
    held_out: Annotated[
        int | None, typer.Option(min=1, help="Held-out utterances per level of noise.", show_default="200")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of weights and data.", show_default="0")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="1")] = None,
    max_minutes: MaxMinutes = None,
    runs: Annotated[
        Path | None, typer.Option(help="Folder of models, features and states.", show_default="runs/avsr")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="JSON file of the table.", show_default="benchmarks/results/avsr.json"),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Also plot word error over noise to this PNG file.", show_default=False)
    ] = None,
    as_json: ResultAsJson = False,
) -> None:
    """Train audio-visual speech recognizers on spoken words with lips, and compare their word errors.

    Audio-only, video-only and audio-visual Llama-AVSR at single rates, Llama-MTSK and MoME at all rates from one
    training, and EchoingPixels at three shares of one pool, with the same encoders and language model. Needs
    espeak-ng. Finished parts are skipped, and a run that was stopped or killed continues when the command is repeated.
    """
    from foveate.benchmark import avsr as benchmark
    from foveate.training.avsr.recipe import read_recipe

    settings = benchmark.quick() if quick else benchmark.AVSRSettings()
    if recipe is not None:
        settings = dataclasses.replace(settings, recipe=read_recipe(shipped.recipe(recipe, ".json")))
    options = {"steps": steps, "utterances": utterances, "encoder_steps": encoder_steps, "text_steps": text_steps}
    given = {name: value for name, value in (options | {"seed": seed}).items() if value is not None}
    changed = {"held_out": held_out, "threads": threads, "systems": names_in(only) or None}
    settings = dataclasses.replace(
        settings,
        recipe=dataclasses.replace(settings.recipe, **given),
        **{name: value for name, value in changed.items() if value is not None},
    )
    runs = runs or (QUICK_RUNS if quick else RUNS)
    path = output or (QUICK_RUNS / "avsr.json" if quick else RESULT)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=notes, transient=True) as progress:
        tasks = {}

        def on_progress(stage: str, done: int, total: int, loss: float | None = None) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage)
            shown = stage if loss is None else f"{stage}, loss {loss:.4f}"
            progress.update(tasks[stage], completed=done, total=total, description=shown)

        document = benchmark.run(
            settings,
            path,
            runs,
            max_minutes=max_minutes,
            command=command_line(),
            report=lambda line: notes.print(line, markup=False),
            on_progress=on_progress,
        )
    if picture is not None and document["rows"]:
        benchmark.draw(document, picture)
    if as_json:
        print_json(document)
        return
    tables = {
        "word error, %": benchmark.table(document),
        "share of sound in what is kept, %": benchmark.sound_table(document),
    }
    for title, (header, rows) in tables.items():
        shown = Table(
            *(Column(name, overflow="fold") for name in header), title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
        )
        for row in rows:
            shown.add_row(*row)
        if rows:
            console.print(shown)
    if not document["finished"]:
        console.print("stopped; run the same command to resume.")
    console.print(f"written: {path}", markup=False)
