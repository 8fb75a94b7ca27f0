"""`foveate bench accuracy`: accuracy with fewer visual tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from foveate.benchmark.results import INERT, inert
from foveate.commands.lists import names_in, pair_in, sides_in
from foveate.commands.options import BatchSize, Device, Difficulty, Dtype, Models, ResultAsJson, Sides, Threads
from foveate.console import command_line, console, notes, print_json
from foveate.core.full_model import FULL_MODEL

EXAMPLES = """
    foveate bench accuracy --quick
    foveate bench accuracy --plans "divprune:25%; fastervlm:64 + fastv:50%@2" --tasks reading,chat
    foveate bench accuracy --methods divprune,hiprune --budgets 10%,25% --tasks all --count 200
    foveate bench accuracy --models path/to/model,owner/name --plans visionzip:64 --tasks my-questions.jsonl
    foveate bench accuracy --tasks all --count 500 -o results.json --resume
    foveate bench accuracy --models Qwen/Qwen2.5-VL-3B-Instruct --tasks clips --plans "evs:25%" --frame-size 448,336
"""

#: Of --quick: a task of every kind.
QUICK_TASKS = ("read_word", "table_cell", "count_shapes", "chart_compare", "shape_colour", "shape_exists", "chat")
QUICK_METHODS = ("divprune", "dart", "pool")
#: The row of second questions whose first one was answered right.
SECOND = "group:chat, second after first"


def accuracy(
    models: Models = "embedded",
    plans: Annotated[
        list[str] | None,
        typer.Option(help="Plans, separated by ; or in repeated options: 'divprune:64; pool:25%'.", show_default=False),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated methods, each at every budget; without --plans, all that need no weights of "
            "their own.",
            show_default=False,
        ),
    ] = None,
    budgets: Annotated[
        str | None,
        typer.Option(help="Comma-separated budgets of --methods, such as 64,25%; 10%,25%,50%.", show_default=False),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            help="Tasks, comma-separated or in repeated options: names, groups (reading, tables, counting, "
            "charts, colour, "
            "yes/no, clips), all (about images), files in LLaVA's format.",
            show_default="all",
        ),
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="Questions per task; 100, with --quick 10.", show_default=False)
    ] = None,
    sides: Sides = "128,640",
    difficulty: Difficulty = 1.0,
    frame_size: Annotated[str, typer.Option(help="Width and height of rendered clips in pixels.")] = "112,84",
    seconds: Annotated[str, typer.Option(help="Shortest and longest rendered clip in seconds.")] = "4,6",
    fps: Annotated[float, typer.Option(help="Frames per second of rendered clips.")] = 2.0,
    batch_size: BatchSize = 8,
    device: Device = None,
    dtype: Dtype = "auto",
    threads: Threads = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="One task of every kind, 10 questions, three methods at 25%, unless set otherwise."
        ),
    ] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON file of the result.")] = Path(
        "benchmarks/results/accuracy.json"
    ),
    resume: Annotated[bool, typer.Option("--resume", help="Continue with the answers in the file.")] = False,
    as_json: ResultAsJson = False,
) -> None:
    """Measure the accuracy of models with plans, on the same questions as three controls.

    Controls are the full model and, at every budget, random tokens and a smaller image. Tasks are rendered pages and
    clips of the held-out split, easy-VQA's test split, chats about one image, small type, and files of your own. The
    result has accuracy, accuracy relative to the full model with a paired bootstrap interval, the share of answers that
    equal those of the full model (agreement), and accuracy on the difficult questions: those that the full model
    answers right and the smaller image does not.

    Every answer is written to NAME.rows.jsonl at once; after an interruption, --resume continues, also with more
    models, plans or tasks.
    """
    from foveate.benchmark import accuracy as benchmark
    from foveate.benchmark.budgets import product
    from foveate.benchmark.tasks import ClipSettings, names

    chosen = [plan.strip() for option in plans or () for plan in option.split(";") if plan.strip()]
    if methods or budgets or not chosen:
        named = names_in(methods) or (QUICK_METHODS if quick else ())
        chosen += product(named, names_in(budgets) or (("25%",) if quick else ("10%", "25%", "50%")))
    settings = benchmark.AccuracySettings(
        models=names_in(models),
        plans=tuple(chosen),
        tasks=tuple(name for option in tasks or () for name in names_in(option)) or (QUICK_TASKS if quick else names()),
        count=count or (10 if quick else 100),
        sides=sides_in(sides),
        difficulty=difficulty,
        clips=ClipSettings(
            pair_in(frame_size, "--frame-size", "the width and the height of frames, such as 112,84"),
            pair_in(seconds, "--seconds", "the shortest and the longest duration, such as 4,6"),
            fps,
        ),
        batch_size=batch_size,
        dtype=dtype,
        device=device,
        threads=threads,
    )
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=notes
    )
    with bar:
        shown = bar.add_task("", total=None, visible=False)
        results = benchmark.run(
            settings,
            output,
            resume=resume,
            command=command_line(),
            report=lambda line: notes.print(line, markup=False),
            progress=lambda done, total, what: bar.update(
                shown, completed=done, total=total, description=what, visible=True
            ),
        )
    if as_json:
        print_json(results)
        return
    for model in settings.models:
        console.print(_table(model, [row for row in results["rows"] if row["model"] == model]))
    for line in results["impossible"]:
        console.print(f"{line['model']}: {line['plan']} cannot run: {line['reason']}", markup=False)
    console.print(f"written: {output} and {benchmark.rows_path(output)}", markup=False)


def _table(model: str, rows: list[dict[str, Any]]) -> Table:
    """Table over all tasks, one row per plan."""
    tasks = len({row["task"] for row in rows if row["task"] != "all" and not row["task"].startswith("group:")})
    head = ("plan", "tokens", "accuracy", "relative", "95 %", "agreement", "difficult")
    second = {row["plan"]: row for row in rows if row["task"] == SECOND}
    head += ("second turn",) if second else ()
    table = Table(
        *(Column(name, justify="left" if name == "plan" else "right", overflow="fold") for name in head),
        title=f"{model}: mean of {tasks} task{'s' * (tasks != 1)}",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for row in rows:
        if row["task"] == "all":
            table.add_row(
                row["plan"],
                f"{row['tokens_kept']:,.0f}" + (f" ({INERT})" if inert(row) else ""),
                f"{row['accuracy']:.1%}",
                "" if row["relative"] is None else f"{row['relative']:.1%}",
                _interval(row),
                f"{row['agreement']:.1%}",
                _difficult(row["difficult"]),
                *((_difficult(second.get(row["plan"])),) if second else ()),
            )
    return table


def _interval(row: dict[str, Any]) -> str:
    if row["relative"] is None or row["plan"] == FULL_MODEL:
        return ""
    return " to ".join(
        "?" if row[end] is None else f"{100 * row[end]:.0f}" for end in ("relative_low", "relative_high")
    )


def _difficult(subset: dict[str, Any] | None) -> str:
    return "" if subset is None else f"{subset['accuracy']:.0%} of {subset['count']}"
