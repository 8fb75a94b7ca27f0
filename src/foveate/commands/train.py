"""`foveate train`: run or resume a training recipe."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from foveate import shipped
from foveate.console import console, notes, print_json
from foveate.core.errors import FoveateError
from foveate.training.recipe_file import read_recipe

EXAMPLES = """
    foveate train recipe:tiny
    foveate train recipes/tiny.yaml --max-minutes 60 --output runs/first
    foveate train recipes/tiny.yaml --export my-model
    accelerate launch --multi_gpu --num_processes 2 -m foveate train recipes/tiny.yaml
    ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 -m foveate train recipes/tiny.yaml
"""


def train(
    recipe: Annotated[
        str, typer.Argument(help="Recipe: a YAML file, or recipe:NAME for one of the package.", show_default=False)
    ],
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for checkpoints, log and model; replaces the recipe's.", show_default=False),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(help="Resume from the latest checkpoint; --no-resume fails if there is one."),
    ] = True,
    max_minutes: Annotated[
        float | None,
        typer.Option(help="Save a checkpoint and stop after this many minutes.", show_default=False),
    ] = None,
    stage: Annotated[
        str | None,
        typer.Option(help="Train only this stage, from the latest weights of the previous stages.", show_default=False),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(help="Save the latest checkpoint's model to this folder without training.", show_default=False),
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Number of data loading processes.")] = 1,
    cpu: Annotated[bool, typer.Option("--cpu", help="Use the CPU even if there is a GPU.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON, and progress on standard error.")
    ] = False,
) -> None:
    """Train a model according to a recipe: which parts, on what data, in which stages.

    After an interruption the same command resumes from the latest checkpoint, with the same batches and loss curve as
    an uninterrupted run. Progress is written to log.jsonl and losses.png in the output folder, and the trained model to
    its subfolder model.
    """
    content = read_recipe(shipped.recipe(recipe))
    # Imported late, so that errors in the recipe are reported at once.
    try:
        from foveate.training.run import Run

        run = Run(content, output, cpu=cpu, workers=workers)
    except ImportError as error:
        raise FoveateError(
            f"training needs more packages ({error}); install them with `pip install foveate[train]`."
        ) from error
    if export is not None:
        dropped = [name for name, given in (("--stage", stage is not None), ("--no-resume", not resume)) if given]
        if dropped:
            raise FoveateError(
                f"--export saves the latest checkpoint of all stages; leave {' and '.join(dropped)} out."
            )
        result = run.export(export)
    else:
        result = run.train(resume, max_minutes, stage, notes if as_json else console)
    if not run.is_main_process:
        return
    document: dict[str, Any] = {
        "finished": result.finished,
        **asdict(result.progress),
        "model": str(result.model) if result.model else None,
        "log": str(result.log),
    }
    if as_json:
        print_json(document)
    else:
        state = "finished" if result.finished else "stopped; run the same command to resume"
        console.print(f"{state}: step {document['step']}, {document['samples']} samples, model in {document['model']}")
