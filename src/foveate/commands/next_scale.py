"""`foveate bench next-scale`: compressed KV caches of a next-scale image model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Column, Table

from foveate.commands.lists import plans_in
from foveate.commands.options import ResultAsJson
from foveate.console import command_line, console, notes, print_json

EXAMPLES = """
    foveate bench next-scale
    foveate bench next-scale --model path --plans "hack:30%; scalekv:30%; random:30%" --picture samples.png
    foveate bench next-scale --model large --samples 1 --repeats 3
"""


def next_scale(
    model: Annotated[
        str,
        typer.Option(
            help="Folder written by train-next-scale, or large: 2,240 tokens, random weights, bytes and time only."
        ),
    ] = "benchmarks/models/next-scale",
    plans: Annotated[
        list[str] | None,
        typer.Option(
            help="Plans, separated by ; or in repeated options: hack, scalekv, random and recent with a budget; "
            "these at 50, 30, 20 and 10 %.",
            show_default=False,
        ),
    ] = None,
    samples: Annotated[int, typer.Option(help="Images generated per turn.")] = 32,
    held_out: Annotated[int, typer.Option(help="Held-out images whose tokens are predicted; 0: none.")] = 128,
    repeats: Annotated[int, typer.Option(help="Timed turns after a warm-up.")] = 3,
    guidance: Annotated[float, typer.Option(help="Strength of classifier-free guidance.")] = 1.5,
    seed: Annotated[int, typer.Option(help="Seed of the images and of random tokens.")] = 0,
    threads: Annotated[int | None, typer.Option(help="CPU threads; PyTorch's default.", show_default=False)] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="JSON file of the result; benchmarks/results/next-scale-trained.json, or -large.",
            show_default=False,
        ),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Also save a figure of samples of all plans.", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Keep an existing result with equal settings.")] = False,
    as_json: ResultAsJson = False,
) -> None:
    """Compare compressed KV caches of a next-scale image model with its full cache: bytes, time, image distance.

    A budget is the mean number of tokens per head, relative to the full cache before the last map. HACK allocates
    budgets by head, ScaleKV by layer; random and the most recent tokens are the controls.
    """
    import torch

    from foveate.benchmark import next_scale as benchmark

    settings = benchmark.NextScaleSettings(
        model=model,
        plans=plans_in(plans) or benchmark.PLANS,
        samples=samples,
        held_out=held_out,
        repeats=repeats,
        guidance=guidance,
        seed=seed,
        threads=torch.get_num_threads() if threads is None else threads,
    )
    output = (
        output or Path("benchmarks/results") / f"next-scale-{'large' if model == benchmark.LARGE else 'trained'}.json"
    )
    command = command_line()
    document = benchmark.run(settings, output, resume=resume, command=command, picture=picture, report=notes.print)
    if said := benchmark.unsteady(document):
        notes.print(said, markup=False)
    if as_json:
        print_json(document)
        return
    header, rows = benchmark.table(document, brief=console.width < 120)
    columns = (Column(name, overflow="fold", no_wrap=name == "plan") for name in header)
    shown = Table(*columns, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for row in rows:
        shown.add_row(*row)
    console.print(shown)
    for line in document.get("impossible", []):
        console.print(f"{line['plan']}: {line['reason']}", markup=False)
    console.print(f"written: {output}")
