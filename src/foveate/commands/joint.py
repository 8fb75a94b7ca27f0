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
            help="Plans, separated by ; or in repeated options: 'divprune:64; pool:25%'; divprune:25%.",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated weight formats of the language model: int8, int4 (torchao), nf4 (bitsandbytes); "
            "int8,int4. Full weights are always included.",
            show_default=False,
        ),
    ] = None,
    caches: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated KV-cache formats: int8, fp8, int4, int2 (the last two: optimum-quanto); "
            "int8,int4. The "
            "full cache is always included.",
            show_default=False,
        ),
    ] = None,
    tasks: Annotated[
        str, typer.Option(help="Comma-separated tasks, as in foveate bench accuracy.")
    ] = "read_word,table_cell,shape_colour",
    count: Annotated[
        int | None, typer.Option(min=1, help="Questions per task; 50, with --quick 10.", show_default=False)
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
    dtype: Annotated[
        str, typer.Option(help="Data type: auto, float32, bfloat16 or float16; int4 on a GPU needs bfloat16.")
    ] = "auto",
    threads: Threads = None,
    quick: Annotated[bool, typer.Option("--quick", help="10 questions per task on small pages.")] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON file of the result.")] = Path(
        "benchmarks/results/joint.json"
    ),
    resume: Annotated[bool, typer.Option("--resume", help="Skip the combinations that the file has.")] = False,
    as_json: ResultAsJson = False,
) -> None:
    """Combine token compression with quantised weights and KV caches: accuracy and cost.

    Every plan and its controls are evaluated with every weight and cache format. The relative accuracy is compared with
    the product of the separate effects of plan, weights and cache. A format that this machine does not support is
    an error that lists the possible ones.
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
