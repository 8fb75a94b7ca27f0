"""`foveate train-scorer`: the scorer of the method `focusui`, trained on rendered screens for one model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from foveate.commands.options import GoOn, Json, MaxMinutes, OneModel, WhereItRuns
from foveate.commands.training import identity, with_progress
from foveate.console import console, notes, print_json
from foveate.core.errors import FoveateError

EXAMPLES = """
    foveate train-scorer -o focusui.safetensors
    foveate train-scorer Qwen/Qwen2.5-VL-3B-Instruct -o focusui.safetensors --steps 5000 --max-minutes 60
    foveate ask screen.png "Click the Save button." --plan "pospad(selector=focusui(weights=focusui.safetensors)):50%"
"""


def train_scorer(
    model: OneModel = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write (.safetensors).", show_default=False)
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 2000,
    batch_size: Annotated[int, typer.Option(min=1, help="Screens a step, each with one instruction.")] = 8,
    learning_rate: Annotated[float, typer.Option(help="Greatest step size.")] = 1e-3,
    heads: Annotated[int, typer.Option(min=1, help="Heads of the scorer's attention.")] = 8,
    dropout: Annotated[float, typer.Option(help="In training.")] = 0.1,
    seed: Annotated[int, typer.Option(min=0, help="Of screens, first weights and dropout.")] = 0,
    held_out: Annotated[int, typer.Option(min=1, help="Held-out screens to measure the scorer on.")] = 200,
    resume: GoOn = True,
    max_minutes: MaxMinutes = None,
    device: WhereItRuns = None,
    as_json: Json = False,
) -> None:
    """Train the scorer of the method focusui: which tokens of a screen an instruction means.

    Screens are rendered with instructions ("Click the Save button.") and the box of the element that is meant. The
    model encodes them, its weights stay as they are, and the scorer learns to find the tokens under the box. Stop it at
    any moment, by Ctrl-C or SIGTERM: the same command goes on from there. State and log are kept in a folder beside the
    output. At the end the scorer is measured on screens with other fonts, words and layout.
    """
    if output is None:
        raise FoveateError("say where to write the trained scorer: -o focusui.safetensors.")
    with notes.status("loading foveate"):
        from foveate.loading import load
        from foveate.training.methods import focusui
        from foveate.training.methods.relevance import RunDirectory
    config = focusui.TrainConfig(steps, batch_size, learning_rate, seed, heads=heads, dropout=dropout)
    folder = RunDirectory(output, {"model": identity(model), **asdict(config)}, resume)
    with notes.status(f"reading {model or 'the embedded model'}"):
        net, processor = load(model, device=device, plan=None)

    fitted = with_progress(
        "scorer",
        steps,
        max_minutes,
        lambda on_progress, stop: focusui.fit(net, processor, config, folder, on_progress, stop),
    )
    document: dict[str, Any] = {
        "finished": fitted.finished,
        "output": str(output) if fitted.finished else None,
        "model": model or "embedded",
        "steps": fitted.step,
        "screens": fitted.step * batch_size,
        "log": str(folder.log.path),
    }
    if fitted.finished:
        focusui.save(fitted.network, output)
        with notes.status(f"measuring on {held_out} held-out screens"):
            document |= {"held_out": held_out, "kept": focusui.measure(net, processor, output, held_out)}
    if as_json:
        print_json(document)
        return
    if not fitted.finished:
        console.print(f"stopped after step {fitted.step} of {steps}; the same command goes on from here.")
        return
    console.print(f"{output} written: {steps} steps, {document['screens']} screens.")
    console.print(f"Of the elements that are meant, in {held_out} held-out screens, stays:")
    for budget, shares in document["kept"].items():
        listed = ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares.items())
        console.print(f"  {budget} of the tokens: {listed}")
