"""`foveate train-next-scale`: train a small next-scale image model on rendered shapes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from foveate import shipped
from foveate.commands.options import GoOn, Json, MaxMinutes
from foveate.commands.training import with_progress
from foveate.console import console, notes, print_json
from foveate.core.errors import FoveateError

EXAMPLES = """
    foveate train-next-scale -o next-scale
    foveate train-next-scale -o next-scale --minutes 10
    foveate train-next-scale -o next-scale --recipe recipe:next-scale
"""


def train_next_scale(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Output folder of the model.", show_default=False)
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="JSON file of settings, or recipe:NAME for one of the package; the built-in ones by default.",
            show_default=False,
        ),
    ] = None,
    minutes: MaxMinutes = None,
    resume: GoOn = True,
    as_json: Json = False,
) -> None:
    """Train a small next-scale image model: a tokenizer, then a transformer, in minutes on a CPU.

    The model generates images of one coloured shape, map by map from coarse to fine, and serves to benchmark KV-cache
    compression in visual autoregression. After an interruption (Ctrl-C or SIGTERM) the same command resumes. State and
    log are kept in a folder next to the output.
    """
    if output is None:
        raise FoveateError("name an output folder for the trained model: -o next-scale.")
    if minutes is not None and not minutes > 0:
        raise FoveateError(f"--minutes {minutes} leaves no time; it must be above 0.")
    with notes.status("loading foveate"):
        from foveate.benchmark.results import write_json
        from foveate.models.next_scale.configuration import NextScaleConfig
        from foveate.training import next_scale
        from foveate.training.run_directory import RunDirectory
    config, settings = NextScaleConfig(), next_scale.Recipe()
    if recipe is not None:
        config, settings = next_scale.read_recipe(shipped.recipe(recipe, ".json"))
    folder = RunDirectory(output, {"model": config.to_diff_dict(), **asdict(settings)}, resume)
    model, finished = with_progress(
        "next-scale model",
        minutes,
        lambda on_progress, stop: next_scale.train(config, settings, folder, on_progress, stop),
    )
    document: dict[str, Any] = {
        "finished": finished,
        "output": str(output) if finished else None,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "log": str(folder.log.path),
    }
    if finished:
        model.save_pretrained(output)
        document["held_out"] = next_scale.measure(model)
        seconds = folder.log.read()[-1]["seconds"]
        record = {"training": asdict(settings), "seconds": seconds, "held_out": document["held_out"]}
        write_json(output / "training.json", record)
    if as_json:
        print_json(document)
        return
    if not finished:
        console.print("stopped; run the same command to resume.")
        return
    console.print(f"{output} written: {document['parameters']:,} parameters.")
    held_out = document["held_out"]
    console.print(
        f"Held-out images: {held_out['nats']:.3f} nats a token, reconstruction error "
        f"{held_out['reconstruction']:.4f}, {held_out['codes_used']} codes used."
    )
