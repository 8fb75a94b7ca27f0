"""`foveate bench released`: plans on a released model and public tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from foveate.benchmark.results import INERT, inert
from foveate.commands.lists import names_in, plans_in
from foveate.commands.options import Device, Dtype, ResultAsJson
from foveate.console import command_line, console, notes, print_json

EXAMPLES = """
    foveate bench released --model Qwen/Qwen2.5-VL-7B-Instruct --plans "divprune:25%; fastv:50%@2"
    foveate bench released --model owner/name --plans hiprune:25% --tasks chartqa,pope --limit 200 --batch-size 8
    foveate bench released --model embedded --plans pool:50% --tasks foveate_examples --include-path examples/lmms-eval
"""


def released(
    model: Annotated[str, typer.Option(help="Hub id, folder, or embedded.", show_default=False)],
    plans: Annotated[
        list[str],
        typer.Option(help="Plans, separated by ; or in repeated options: 'divprune:25%; pool:64'.", show_default=False),
    ],
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            help="Tasks of lmms-eval, comma-separated or in repeated options.",
            show_default="textvqa,chartqa,docvqa,pope,mme",
        ),
    ] = None,
    include_path: Annotated[
        Path | None, typer.Option(help="Folder with more tasks, as --include_path of lmms-eval.", show_default=False)
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of questions per task.", show_default="all questions")
    ] = None,
    controls: Annotated[
        bool,
        typer.Option("--controls/--no-controls", help="Also measure random tokens and a smaller image at each budget."),
    ] = True,
    speed: Annotated[
        bool, typer.Option("--speed/--no-speed", help="Also measure the speed, as `foveate bench speed` does.")
    ] = True,
    batch_size: Annotated[int, typer.Option(min=1, help="Number of questions per batch.")] = 1,
    device: Device = None,
    dtype: Dtype = "auto",
    attention: Annotated[
        str, typer.Option(help="Attention implementation of the model: sdpa, or flash_attention_2 if installed.")
    ] = "sdpa",
    repeats: Annotated[int, typer.Option(min=1, help="Timed turns of the speed measurement.")] = 3,
    image: Annotated[
        Path | None,
        typer.Option(help="Image of the speed measurement; a rendered receipt of 448 x 448.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder of the result, the report page and the leaderboard rows.",
            show_default="released/MODEL",
        ),
    ] = None,
    as_json: ResultAsJson = False,
) -> None:
    """Measure plans on a released model: public tasks with lmms-eval, speed, a report, and rows for the leaderboard.

    The full model and every plan answer the same questions; controls at the same budgets are random tokens and a
    smaller image. Tasks and plans are checked first, with the model's configuration alone. Needs lmms-eval:
    pip install 'foveate[lmms]'.

    An interruption (Ctrl-C or a kill) loses at most the current task and plan: the same command continues.
    """
    from foveate.benchmark import released as benchmark
    from foveate.benchmark.released.settings import slug
    from foveate.integrations.lmms_eval.evaluation import LmmsEvaluator
    from foveate.report import build

    settings = benchmark.ReleasedSettings(
        model=model,
        plans=plans_in(plans),
        tasks=tuple(name for option in tasks or () for name in names_in(option)) or tuple(benchmark.TASKS),
        limit=limit,
        controls=controls,
        speed=speed,
        batch_size=batch_size,
        dtype=dtype,
        device=device,
        attention=attention,
        repeats=repeats,
        image=None if image is None else str(image),
    )
    folder = output or Path("released") / slug(settings.name)
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=notes,
    )
    shown = bar.add_task("", total=None, visible=False)

    def advance(done: int, total: int, what: str) -> None:
        if done == 0:  # another task or plan, with a speed of its own
            bar.reset(shown)
        bar.update(shown, completed=done, total=total, description=what, visible=done < total)

    with bar:
        results = benchmark.run(
            settings,
            folder,
            LmmsEvaluator(settings, include_path),
            command=command_line(),
            report=lambda line: notes.print(line, markup=False),
            progress=advance,
        )
    page = build([folder / benchmark.RESULT], folder / "report", title=f"Plans on {settings.name}", pictures=False)[
        "page"
    ]
    if as_json:
        print_json(results)
        return
    console.print(_table(settings.name, results["rows"]))
    for line in results["impossible"]:
        where = f" on {line['task']}" if "task" in line else ""
        console.print(f"{line['plan']} cannot run{where}: {line['reason']}", markup=False)
    console.print(f"written: {folder / benchmark.RESULT}, {page} and {results['leaderboard']}", markup=False)


def _table(model: str, rows: list[dict[str, Any]]) -> Table:
    """Table of scores, one row per plan and one column per task."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    by_plan: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        by_plan.setdefault(row["plan"], {})[row["task"]] = row
    columns = (Column(name, justify="right", overflow="fold") for name in ("tokens", *tasks, "relative"))
    table = Table(Column("plan", overflow="fold"), *columns, title=model, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for plan, by_task in by_plan.items():
        last = by_task.get("all") or next(iter(by_task.values()))
        table.add_row(
            plan,
            f"{last['tokens_kept']:,.0f}" + (f" ({INERT})" if inert(last) else ""),
            *(f"{by_task[task]['accuracy']:.1%}" if task in by_task else "" for task in tasks),
            f"{last['relative']:.1%}" if "all" in by_task and last["relative"] is not None else "",
        )
    return table
