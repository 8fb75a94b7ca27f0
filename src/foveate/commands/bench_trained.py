"""`foveate bench trained`: connectors trained under one protocol."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Column, Table

from foveate.commands.lists import names_in
from foveate.commands.options import MaxMinutes, ResultAsJson, refuse_others
from foveate.console import command_line, console, notes, print_json
from foveate.core.errors import FoveateError

EXAMPLES = """
    foveate bench trained --quick
    foveate bench trained --only tokenpacker-36,average-36
    foveate bench trained
    foveate bench trained --show
    foveate bench trained --clips --quick
    foveate bench trained --clips --only slow_fast,average-64
"""

RESULT, RUNS = Path("benchmarks/results/trained.json"), Path("runs/trained")
#: Result and folder of --quick, and the trainings that it runs.
QUICK_RUNS, QUICK_ONLY = Path("runs/trained-quick"), ("average-16", "m3")
QUICK = QUICK_RUNS / "trained.json"
#: The same with --clips.
CLIP_RESULT, CLIP_RUNS = Path("benchmarks/results/trained-clips.json"), Path("runs/trained-clips")
CLIP_QUICK_RUNS, CLIP_QUICK_ONLY = Path("runs/trained-clips-quick"), ("average-64", "slow_fast")
CLIP_QUICK = CLIP_QUICK_RUNS / "trained.json"


def trained(
    context: typer.Context,
    only: Annotated[
        str | None,
        typer.Option(help="Comma-separated systems or trainings, such as m3,average-36; all.", show_default=False),
    ] = None,
    show: Annotated[
        bool, typer.Option("--show", help="Show the table, the fronts and the claims of the file; run nothing.")
    ] = False,
    clips: Annotated[
        bool,
        typer.Option(
            "--clips", help="Video connectors, on rendered clips, in place of connectors and encoders of images."
        ),
    ] = False,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Two trainings of two steps and a few questions, to try the command: a minute."),
    ] = False,
    base: Annotated[
        str | None,
        typer.Option(
            help="Folder or Hub id of a LLaVA model whose vision tower and language model are taken; with --clips the "
            "model of `foveate train recipe:video/base`.",
            show_default="benchmarks/models/measure-llava, or runs/video/base/model",
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of every training.", show_default="those of the recipe")
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Questions per task.", show_default="200")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of weights and data.", show_default="that of the recipe")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="1")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.", show_default="cpu")] = None,
    max_minutes: MaxMinutes = None,
    runs: Annotated[
        Path | None,
        typer.Option(help="Folder of checkpoints and models.", show_default="runs/trained, or runs/trained-clips"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="JSON file of the table.",
            show_default="benchmarks/results/trained.json, or trained-clips.json",
        ),
    ] = None,
    as_json: ResultAsJson = False,
) -> None:
    """Train connectors and encoders under one protocol and compare them: accuracy against tokens, FLOPs and time.

    All trainings start from the same language model and frozen vision tower, with the same images, steps and seed;
    encoders are trained from random weights, as is the control vit that they are compared with. Trainings run one after
    another. Finished ones are skipped, and a run that was stopped or killed continues from its checkpoint when the
    command is repeated. With --clips, video connectors are compared with average pooling at the same number of
    tokens; what they start from is trained with `foveate train recipe:video/base`. The claim of every paper is listed
    with the difference that the rows show.
    """
    from foveate.benchmark import trained as benchmark
    from foveate.benchmark.trained.settings import quick as quick_settings

    usual_path, usual_runs, usual_only = (CLIP_RESULT, CLIP_RUNS, ()) if clips else (RESULT, RUNS, ())
    if quick:
        usual = (CLIP_QUICK, CLIP_QUICK_RUNS, CLIP_QUICK_ONLY) if clips else (QUICK, QUICK_RUNS, QUICK_ONLY)
        usual_path, usual_runs, usual_only = usual
    path = output or usual_path
    if show:
        refuse_others(context, "--show", "show", "clips", "quick", "output", "as_json")
        document = _read(path)
    else:
        kind = benchmark.ClipTrainedSettings if clips else benchmark.TrainedSettings
        settings = quick_settings(kind) if quick else kind()
        given = {"base": base, "steps": steps, "count": count, "seed": seed, "threads": threads, "device": device}
        document = benchmark.run(
            dataclasses.replace(settings, **{name: value for name, value in given.items() if value is not None}),
            path,
            runs or usual_runs,
            only=names_in(only) or usual_only,
            max_minutes=max_minutes,
            command=command_line(),
            report=lambda line: notes.print(line, markup=False),
            console=notes,
        )
    if as_json:
        print_json(document)
        return
    _print(document)
    if not show:
        console.print(f"written: {path}", markup=False)


def _read(path: Path) -> dict[str, Any]:
    """Read the table, with the claims as this version of foveate has them."""
    from foveate.benchmark.results import read_results
    from foveate.benchmark.trained import conclude

    if not path.is_file():
        raise FoveateError(
            f"there is no result {path}: run the command without --show first, or name another --output."
        )
    try:
        document = read_results(path)
        if document["kind"] != "trained":
            raise KeyError("kind")
        return conclude(document)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FoveateError(
            f"{path} is no result of `foveate bench trained` ({type(error).__name__}: {error}); name another file with "
            "--output."
        ) from error


def _print(document: dict[str, Any]) -> None:
    from foveate.benchmark.trained.formatting import COSTS, claim_line, front, table

    header, rows = table(document, brief=console.width < 180)
    shown = Table(*(Column(name, overflow="fold") for name in header), box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for row in rows:
        shown.add_row(*row)
    console.print(shown)
    for title, cost in COSTS.items():
        members = ", ".join(f"{row['system']} at {row['tokens']}" for row in front(document["rows"], cost))
        console.print(f"Pareto front of accuracy and {title}: {members or 'no row yet'}", markup=False)
    for claim in document["claims"]:
        console.print(f"- {claim_line(claim)}", markup=False)
