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
            help="The most that a plan may cost, relative to the full model: 0.5x, 50%. Searched is the most "
            "accurate of these plans.",
            show_default=False,
        ),
    ] = None,
    min_accuracy: Annotated[
        str | None,
        typer.Option(
            help="The least accuracy relative to the full model: 97%. Searched is the cheapest of these plans. "
            "With --target-ttft both must hold.",
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
            help="With commas, or in options of their own, as in `foveate bench accuracy`.",
            show_default="--data, or a task of every kind",
        ),
    ] = None,
    count: Annotated[
        int, typer.Option(min=2, help="Items of every task. Half are searched on, the other half confirm.")
    ] = 40,
    trials: Annotated[int, typer.Option(min=1, help="Plans to try; more go on with the same search.")] = 40,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            help="Methods to choose from, with commas, also with arguments.",
            show_default="all that run on the model without weights of their own, but the controls",
        ),
    ] = None,
    budgets: Annotated[
        str | None, typer.Option(help="Budgets to choose from, with commas.", show_default="13 steps from 5% to 80%")
    ] = None,
    chains: Annotated[
        bool, typer.Option("--chains/--no-chains", help="Also join a method before the language model and one inside.")
    ] = True,
    cost: Annotated[
        str,
        typer.Option(
            help="What counts as cost. time: to the first token, measured in turns with the full model, which is "
            "what you wait for, and noisy on a busy machine. flops: operations to the first token, which every run "
            "counts alike, and which leave out what choosing costs beside matrix products. Both are reported of what "
            "is confirmed."
        ),
    ] = "time",
    objective: Annotated[
        str,
        typer.Option(
            help="accuracy, or information-flow: how far the state that the answer begins from stays the "
            "same (VFlowOpt; the search then needs no answers; with --target-ttft alone)."
        ),
    ] = "accuracy",
    repeats: Annotated[
        int, typer.Option(min=1, help="Timed turns of a plan; twice as many where it is confirmed.")
    ] = 5,
    finalists: Annotated[int, typer.Option(min=1, help="The most plans to confirm, until one holds.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Of draws, and of the division of questions.")] = 0,
    sides: Sides = "128,640",
    difficulty: Difficulty = 1.0,
    batch_size: BatchSize = 8,
    device: Device = None,
    dtype: Dtype = "auto",
    threads: Threads = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the result, its picture, the trials and the answers.")
    ] = Path("tuned"),
    as_json: ResultAsJson = False,
) -> None:
    """Search for the best plan for a model: methods, budgets and layers, on your questions or on rendered ones.

    Half of the questions are searched on. What wins is asked the other half, which the search never saw, beside random
    tokens and smaller images; intervals are of the paired bootstrap. A plan that is too dear is not asked, and one that
    cannot win any more is stopped early.

    Ctrl-C, or a kill, loses at most the trial at work: the same command goes on in the same folder.
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
        found = benchmark.run(
            settings,
            output,
            command=command_line(),
            report=lambda line: notes.print(line, markup=False),
            progress=lambda done, total, what: bar.update(
                shown, completed=done, total=total, description=what, visible=True
            ),
        )
    pictures = []
    if any("score" in one for one in found["trials"]):
        pictures.append(output / "tune.png")
        benchmark.plot(found, pictures[0])
    if as_json:
        print_json(found)
        return
    _show(found)
    written = " and ".join(str(path) for path in (output / "tune.json", *pictures))
    console.print(f"written: {written}", markup=False)


def _show(found: dict[str, Any]) -> None:
    from foveate.tune import confirmed, front, verdict

    console.print(_front(found, front(found["trials"])))
    best = confirmed(found)
    for one in found["confirmation"]:
        console.print(_evidence(found, one))
    for line in verdict(found):
        console.print(line, markup=False)
    if best is not None:
        console.print("\n[bold]plan[/bold]", end="  ")
        console.print(best["plan"], markup=False, soft_wrap=True)
        model = found["settings"]["model"]
        named = "" if model == "embedded" else f" --model {shlex.quote(model)}"
        line = f'foveate ask IMAGE "QUESTION"{named} --plan {_quoted(best["plan"])}'
        console.print(line, markup=False, soft_wrap=True)


def _quoted(plan: str) -> str:
    """Quote a plan for a shell, in double quotes unless the plan contains some."""
    return shlex.quote(plan) if '"' in plan or "$" in plan else f'"{plan}"'


def _front(found: dict[str, Any], best: list[dict[str, Any]]) -> Table:
    """Table of the Pareto-optimal trials."""
    flow = found["settings"]["objective"] != "accuracy"
    table = _table(
        f"Pareto-best of {len(found['trials'])} trials, on {found['items']['search']} items of the search "
        "(chosen by these numbers, so they flatter)",
        ("plan", "ttft", "flops", "flow" if flow else "relative", "95 %"),
    )
    for one in best:
        table.add_row(one["plan"], _time(one), f"{one['flops']:.2f}x", _score(one, flow), _interval(one))
    return table


def _evidence(found: dict[str, Any], one: dict[str, Any]) -> Table:
    """Table of a finalist's result on new questions, with its controls."""
    held = "held" if one["met"] else "did not hold"
    table = _table(
        f"{one['plan']} {held} on {one['questions']} questions that the search had not seen",
        ("plan", "tokens", "ttft", "flops", "accuracy", "relative", "95 %", "better by"),
    )
    full_model = found["full_model"]["confirm"]
    table.add_row(
        "full model", f"{full_model['tokens_kept']:,.0f}", "1.00x", "1.00x", f"{full_model['accuracy']:.1%}", "100.0%"
    )
    for row in (one, *(control for control in one["controls"] if "reason" not in control)):
        by = "" if row is one else f"{100 * row['better_by']:+.1f}"
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


def _time(one: dict[str, Any]) -> str:
    """Format the median of the turns."""
    return "" if one["ttft"] is None else f"{one['ttft']['median']:.2f}x"


def _score(one: dict[str, Any], flow: bool) -> str:
    return f"{one['score']:.4f}" if flow else f"{one['score']:.1%}"


def _interval(one: dict[str, Any]) -> str:
    ends = (one["low"], one["high"])
    return "" if ends == (None, None) else "-".join("?" if end is None else f"{100 * end:.0f}" for end in ends)
