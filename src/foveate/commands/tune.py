"""`foveate tune`: search for the best plan for a model and your questions."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from foveate.benchmark.results import INERT, inert
from foveate.commands.accuracy import QUICK_TASKS
from foveate.commands.lists import names_in, sides_in
from foveate.commands.options import BatchSize, Device, Difficulty, Dtype, ResultAsJson, Sides, Threads
from foveate.console import command_line, console, notes, print_json

EXAMPLES = """
    foveate tune embedded --target-ttft 0.5x
    foveate tune path/to/model --min-accuracy 97% --data my-questions.jsonl -o tuned
    foveate tune owner/name --target-ttft 40% --methods divprune,hiprune,fastv --trials 100
    foveate tune embedded --min-accuracy 95% --cost flops --tasks reading --count 200
    foveate tune embedded --target-ttft 0.5x --objective information-flow --methods vflowopt,vflowopt-decoder
"""


def tune(
    model: Annotated[str, typer.Argument(help="embedded, a folder, or a Hub id.")] = "embedded",
    target_ttft: Annotated[
        str | None,
        typer.Option(
            help="Maximum time to first token relative to the full model: 0.5x, 50%. The search looks for the most "
            "accurate plan within it.",
            show_default=False,
        ),
    ] = None,
    min_accuracy: Annotated[
        str | None,
        typer.Option(
            help="Minimum accuracy relative to the full model: 97%. The search looks for the cheapest plan "
            "that reaches "
            "it. With --target-ttft both must hold.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Your own questions: a JSON or JSONL file in LLaVA's format.", show_default=False),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            help="Tasks, comma-separated or in repeated options, as in `foveate bench accuracy`.",
            show_default="--data, or a task of every kind",
        ),
    ] = None,
    count: Annotated[
        int, typer.Option(min=2, help="Items per task: one half for the search, the other half for confirmation.")
    ] = 40,
    trials: Annotated[
        int, typer.Option(min=1, help="Number of plans to try; a larger number continues the same search.")
    ] = 40,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            help="Comma-separated methods to choose from, also with arguments.",
            show_default="all that run on the model without weights of their own, except the controls",
        ),
    ] = None,
    budgets: Annotated[
        str | None, typer.Option(help="Comma-separated budgets to choose from.", show_default="13 steps from 5% to 80%")
    ] = None,
    chains: Annotated[
        bool,
        typer.Option(
            "--chains/--no-chains", help="Also combine a method before the language model with one inside it."
        ),
    ] = True,
    cost: Annotated[
        str,
        typer.Option(
            help="Cost measure. time: time to first token, alternating with the full model; it includes "
            "everything, but is "
            "noisy on a busy machine. flops: operations to the first token; reproducible, but only matrix products of "
            "the token selection count. Both are reported for confirmed plans."
        ),
    ] = "time",
    objective: Annotated[
        str,
        typer.Option(
            help="Objective: accuracy, or information-flow, the similarity of the hidden state from which the answer "
            "starts (VFlowOpt; needs no answers; only with --target-ttft)."
        ),
    ] = "accuracy",
    repeats: Annotated[int, typer.Option(min=1, help="Timed turns per plan; twice as many for confirmation.")] = 5,
    finalists: Annotated[int, typer.Option(min=1, help="Maximum number of plans to confirm, until one holds.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the search and of the split of questions.")] = 0,
    sides: Sides = "128,640",
    difficulty: Difficulty = 1.0,
    batch_size: BatchSize = 8,
    device: Device = None,
    dtype: Dtype = "auto",
    threads: Threads = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the result, its plot, the trials and the answers.")
    ] = Path("tuned"),
    as_json: ResultAsJson = False,
) -> None:
    """Search for the best plan for a model: methods, budgets and layers, on your questions or on rendered ones.

    Half of the questions are used for the search. The best plans are then evaluated on the other half, together with
    random tokens and smaller images; intervals are from the paired bootstrap. A plan that exceeds the cost target is
    not evaluated, and one that can no longer win is stopped early.

    An interruption (Ctrl-C or a kill) loses at most the current trial: the same command resumes in the same folder.
    """
    from foveate import tune as benchmark

    named = tuple(name for option in tasks or () for name in names_in(option))
    settings = benchmark.TuneSettings(
        model=model,
        target_ttft=None if target_ttft is None else benchmark.factor(target_ttft),
        min_accuracy=None if min_accuracy is None else benchmark.share(min_accuracy),
        tasks=(*named, *(() if data is None else (str(data),))) or QUICK_TASKS,
        count=count,
        trials=trials,
        methods=tuple(name for option in methods or () for name in benchmark.methods_in(option)),
        budgets=names_in(budgets) or benchmark.BUDGETS,
        chains=chains,
        cost=cost,  # ty: ignore[invalid-argument-type]
        objective=objective,  # ty: ignore[invalid-argument-type]
        repeats=repeats,
        finalists=finalists,
        seed=seed,
        sides=sides_in(sides),
        difficulty=difficulty,
        batch_size=batch_size,
        dtype=dtype,
        device=device,
        threads=threads,
    )
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=notes,
    )
    with bar:
        shown = bar.add_task("", total=None, visible=False)
        document = benchmark.run(
            settings,
            output,
            command=command_line(),
            report=lambda line: notes.print(line, markup=False),
            progress=lambda done, total, what: bar.update(
                shown, completed=done, total=total, description=what, visible=True
            ),
        )
    pictures = []
    if any("score" in trial for trial in document["trials"]):
        pictures.append(output / "tune.png")
        benchmark.plot(document, pictures[0])
    if as_json:
        print_json(document)
        return
    _show(document)
    written = " and ".join(str(path) for path in (output / "tune.json", *pictures))
    console.print(f"written: {written}", markup=False)


def _show(document: dict[str, Any]) -> None:
    from foveate.tune import confirmed, front, verdict

    console.print(_front(document, front(document["trials"])))
    best = confirmed(document)
    for finalist in document["confirmation"]:
        console.print(_evidence(document, finalist))
    for line in verdict(document):
        console.print(line, markup=False)
    if best is not None:
        console.print("\n[bold]plan[/bold]", end="  ")
        console.print(best["plan"], markup=False, soft_wrap=True)
        model = document["settings"]["model"]
        named = "" if model == "embedded" else f" --model {shlex.quote(model)}"
        line = f'foveate ask IMAGE "QUESTION"{named} --plan {_quoted(best["plan"])}'
        console.print(line, markup=False, soft_wrap=True)


def _quoted(plan: str) -> str:
    """Quote a plan for a shell, in double quotes unless the plan contains some."""
    return shlex.quote(plan) if '"' in plan or "$" in plan else f'"{plan}"'


def _front(document: dict[str, Any], best: list[dict[str, Any]]) -> Table:
    """Table of the Pareto-optimal trials."""
    flow = document["settings"]["objective"] != "accuracy"
    table = _table(
        f"Pareto-optimal among {len(document['trials'])} trials, on {document['items']['search']} items of the search "
        "(selected by these numbers, so they are optimistic)",
        ("plan", "ttft", "flops", "flow" if flow else "relative", "95 %"),
    )
    for trial in best:
        table.add_row(trial["plan"], _time(trial), f"{trial['flops']:.2f}x", _score(trial, flow), _interval(trial))
    return table


def _evidence(document: dict[str, Any], finalist: dict[str, Any]) -> Table:
    """Table of a finalist's result on new questions, with its controls."""
    held = "held" if finalist["met"] else "did not hold"
    table = _table(
        f"{finalist['plan']} {held} on {finalist['questions']} new questions",
        ("plan", "tokens", "ttft", "flops", "accuracy", "relative", "95 %", "better by"),
    )
    full_model = document["full_model"]["confirm"]
    table.add_row(
        "full model", f"{full_model['tokens_kept']:,.0f}", "1.00x", "1.00x", f"{full_model['accuracy']:.1%}", "100.0%"
    )
    for row in (finalist, *(control for control in finalist["controls"] if "reason" not in control)):
        by = "" if row is finalist else f"{100 * row['better_by']:+.1f}"
        table.add_row(
            row["plan"],
            f"{row['tokens_kept']:,.0f}" + (f" ({INERT})" if inert(row) else ""),
            _time(row),
            f"{row['flops']:.2f}x",
            f"{row['accuracy']:.1%}",
            f"{row['score']:.1%}",
            _interval(row),
            by,
        )
    return table


def _table(title: str, head: tuple[str, ...]) -> Table:
    plan = Column("plan", overflow="fold", min_width=15)
    return Table(
        plan,
        *(Column(name, justify="right") for name in head[1:]),
        title=title,
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )


def _time(row: dict[str, Any]) -> str:
    """Format the median of the turns."""
    return "" if row["ttft"] is None else f"{row['ttft']['median']:.2f}x"


def _score(row: dict[str, Any], flow: bool) -> str:
    return f"{row['score']:.4f}" if flow else f"{row['score']:.1%}"


def _interval(row: dict[str, Any]) -> str:
    ends = (row["low"], row["high"])
    return "" if ends == (None, None) else "-".join("?" if end is None else f"{100 * end:.0f}" for end in ends)
