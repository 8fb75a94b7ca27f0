"""`foveate train-pruner`: the small networks of the methods `covipal` and `dpn`, trained for one model."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from foveate.commands.lists import sides_in
from foveate.commands.options import (
    Conversations,
    GoOn,
    ImageFolder,
    Json,
    LearningDifficulty,
    LearningSides,
    Limit,
    MaxMinutes,
    OneModel,
    WhereItRuns,
)
from foveate.commands.training import identity, with_progress
from foveate.console import command_line, console, notes, print_json
from foveate.core.errors import FoveateError

EXAMPLES = """
    foveate train-pruner -o pruner --steps 150 --layers 2
    foveate train-pruner Qwen/Qwen2.5-VL-3B-Instruct my-receipts.jsonl -o pruner --max-minutes 60
    foveate ask receipt.png "What is the total?" --plan "covipal(weights=pruner):25%@2"
    foveate train-pruner my-model -o my-model/covipal; foveate ask receipt.png "..." --model my-model --plan covipal:25%
    foveate train-pruner --kind dpn -o routers --pressure 0.5
"""


class Kind(StrEnum):
    """Whose networks."""

    covipal = "covipal"
    dpn = "dpn"


def train_pruner(
    model: OneModel = None,
    data: Conversations = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder to write; plans find it by themselves in the model's folder under the name of the kind.",
            show_default=False,
        ),
    ] = None,
    kind: Annotated[Kind, typer.Option(help="Whose networks are trained.")] = Kind.covipal,
    layers: Annotated[
        str | None,
        typer.Option(
            help="Decoder layers before which they act, such as 2 or 2,8; by default 2, of dpn three in even steps.",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 500,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions a step.")] = 8,
    learning_rate: Annotated[float, typer.Option(help="Greatest step size.")] = 1e-3,
    guided: Annotated[
        float | None,
        typer.Option(
            help="covipal: part of the steps that learn a deeper layer's attention, 0.3 by default; the rest learns "
            "answers.",
            show_default=False,
        ),
    ] = None,
    width: Annotated[
        int | None, typer.Option(min=1, help="covipal: width of the modules, 128 by default.", show_default=False)
    ] = None,
    heads: Annotated[
        int | None, typer.Option(min=1, help="covipal: heads of their attention, 4 by default.", show_default=False)
    ] = None,
    pressure: Annotated[
        float | None,
        typer.Option(help="dpn: weight of the loss that asks for wide windows, 0.001 by default.", show_default=False),
    ] = None,
    images: ImageFolder = None,
    limit: Limit = None,
    seed: Annotated[int, typer.Option(min=0, help="Of questions, first weights and chance.")] = 0,
    sides: LearningSides = None,
    difficulty: LearningDifficulty = None,
    held_out: Annotated[int, typer.Option(min=1, help="Held-out rendered questions to measure on.")] = 100,
    resume: GoOn = True,
    max_minutes: MaxMinutes = None,
    device: WhereItRuns = None,
    as_json: Json = False,
) -> None:
    """Train the small networks of a method inside the language model: covipal's modules or dpn's routers.

    The model's weights stay as they are. A module of covipal says which visual tokens go on after a layer: it first
    learns what a deeper layer looks at, then that the model answers as it does with all tokens. A router of dpn says by
    which windows an image is pooled: it learns which let the model answer. Stop it at any moment, by Ctrl-C or SIGTERM:
    the same command goes on from there. State and log are kept in a folder beside the output. At the end the method is
    measured on held-out questions, beside others at the same layers.
    """
    if output is None:
        raise FoveateError("say which folder to write: -o pruner.")
    data = list(data or [])
    if limit is not None and not data:
        raise FoveateError("--limit is for files; questions about rendered images have no end.")
    named = None if layers is None else _layers(layers)
    with notes.status("loading foveate"):
        from foveate.loading import load
        from foveate.training.methods import fidelity, teacher_forcing
        from foveate.training.methods.relevance import RunDirectory
    own = {"guided": guided, "width": width, "heads": heads, "pressure": pressure}
    trainer, config = _trainer(kind, (steps, batch_size, learning_rate, seed), own)
    pages = teacher_forcing.Pages(None if sides is None else sides_in(sides), difficulty)
    examples = teacher_forcing.samples(data, images, limit, seed, pages)
    about = {
        "model": identity(model),
        "kind": kind.value,
        "data": [hashlib.sha256(path.read_bytes()).hexdigest() for path in data],
        "rendered": None if data else [sides, difficulty],
        "layers": None if named is None else list(named),
        **asdict(config),
    }
    folder = RunDirectory(output, about, resume)
    with notes.status(f"reading {model or 'the embedded model'}"):
        net, processor = load(model, device=device, plan=None)
    at = trainer.default_layers(net) if named is None else named

    fitted = with_progress(
        kind.value,
        steps,
        max_minutes,
        lambda on_progress, stop: trainer.fit(net, processor, examples, at, config, folder, on_progress, stop),
    )
    document: dict[str, Any] = {
        "command": command_line(),
        "finished": fitted.finished,
        "output": str(output) if fitted.finished else None,
        "model": model or "embedded",
        "kind": kind.value,
        "layers": list(at),
        "steps": fitted.step,
        "questions": fitted.step * batch_size,
        "log": str(folder.log.path),
    }
    if fitted.finished:
        trainer.save(fitted.network, config, output)
        with notes.status(f"measuring on {held_out} held-out questions"):
            plans = trainer.plans(str(output), at)
            found = fidelity.measure(net, processor, pages.held_out(held_out), plans)
        document |= {"held_out": held_out, "measured": found}
    if as_json:
        print_json(document)
        return
    if not fitted.finished:
        console.print(f"stopped after step {fitted.step} of {steps}; the same command goes on from here.")
        return
    console.print(f"{output} written: {steps} steps, {document['questions']} questions.")
    console.print(f"On {held_out} held-out questions (loss and distance from all tokens in nats a token):")
    for plan, row in document["measured"].items():
        console.print(
            f"  {plan}: loss {row['loss']:.3f}, distance {row['kl']:.3f}, same token {100 * row['agreement']:.1f} %, "
            f"{100 * row['tokens']:.0f} % of the tokens in the last layer",
            soft_wrap=True,
        )


def _layers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise FoveateError(f"--layers {text!r} names no decoder layers; write them as 2 or 2,8.") from None


def _trainer(kind: Kind, shared: tuple[Any, ...], own: dict[str, Any]) -> tuple[Any, Any]:
    """The module that trains a kind, and how."""
    from foveate.training.methods import covipal, dpn

    trainer: Any = {Kind.covipal: covipal, Kind.dpn: dpn}[kind]
    given = {name: value for name, value in own.items() if value is not None}
    if wrong := sorted(given.keys() - {field.name for field in fields(trainer.TrainConfig)}):
        raise FoveateError(f"--{wrong[0]} is not for --kind {kind.value}.")
    return trainer, trainer.TrainConfig(*shared, **given)
