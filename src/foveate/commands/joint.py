"""`foveate bench joint`: token compression with quantised weights and KV caches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Column, Table

from foveate.commands.lists import names_in, plans_in, sides_in
from foveate.commands.options import BatchSize, Device, Difficulty, Models, ResultAsJson, Threads
from foveate.console import command_line, console, notes, print_json

EXAMPLES = """
    foveate bench joint --quick
    foveate bench joint --plans "divprune:25%; pool:25%" --weights int8,int4 --caches int8,int4
    foveate bench joint --models path/or/hub-id --tasks questions.json --device cuda --dtype bfloat16
"""


def joint(
    models: Models = "embedded",
    plans: Annotated[
        list[str] | None,
        typer.Option(
            help="Plans, parted by ; or in options of their own: 'divprune:64; pool:25%'; divprune:25%.",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Weights of the language model with commas: int8, int4 (torchao), nf4 (bitsandbytes); int8,int4. "
            "Full ones are always there.",
            show_default=False,
        ),
    ] = None,
    caches: Annotated[
        str | None,
        typer.Option(
            help="Caches with commas: int8, fp8, int4, int2 (the last two: optimum-quanto); int8,int4. The full one "
            "is always there.",
            show_default=False,
        ),
    ] = None,
    tasks: Annotated[
        str, typer.Option(help="Tasks with commas, as foveate bench accuracy takes them.")
    ] = "read_word,table_cell,shape_colour",
    count: Annotated[
        int | None, typer.Option(min=1, help="Questions of every task; 50, with --quick 10.", show_default=False)
    ] = None,
    sides: Annotated[
        str | None,
        typer.Option(
            help="Shortest and longest side of rendered pages, in pixels; 128,640, with --quick 128,256.",
            show_default=False,
        ),
    ] = None,
    difficulty: Difficulty = 1.0,
    batch_size: BatchSize = 8,
    device: Device = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16; int4 on a GPU: bfloat16.")] = "auto",
    threads: Threads = None,
    quick: Annotated[bool, typer.Option("--quick", help="10 questions of every task on small pages.")] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON file.")] = Path("benchmarks/results/joint.json"),
    resume: Annotated[bool, typer.Option("--resume", help="Keep the combinations that the file already has.")] = False,
    as_json: ResultAsJson = False,
) -> None:
    """Combine token compression with quantised weights and KV caches: accuracy and cost.

    Every plan, and the controls at its budget, is asked with every kind of weights and of cache. Beside the relative
    accuracy stands the product of what plan, weights and cache cost alone. A kind that does not run on this machine is
    refused with what is possible.
    """
    from foveate.benchmark import joint as benchmark

    settings = benchmark.JointSettings(
        models=names_in(models),
        plans=plans_in(plans) or ("divprune:25%",),
        weights=names_in(weights),
        caches=names_in(caches),
        tasks=names_in(tasks),
        count=count or (10 if quick else 50),
        sides=sides_in(sides or ("128,256" if quick else "128,640")),
        difficulty=difficulty,
        batch_size=batch_size,
        dtype=dtype,
        device=device,
        threads=threads,
    )
    results = benchmark.run(
        settings,
        output,
        resume=resume,
        command=command_line(),
        report=lambda line: notes.print(line, markup=False),
    )
    if as_json:
        print_json(results)
        return
    header, rows = benchmark.table(results)
    shown = Table(*(Column(name, overflow="fold") for name in header), box=SIMPLE_HEAD)
    for row in rows:
        shown.add_row(*row)
    console.print(shown)
    for line in results["impossible"]:
        what = f"{line['model']}, {line['plan']}, {line['kind']} weights, {line['cache']} cache"
        console.print(f"{what}: {line['reason']}", markup=False)
    console.print(f"written: {output}", markup=False)
