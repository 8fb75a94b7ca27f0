"""`foveate train-draft`: a draft for `foveate.speculate`, trained on what one model writes."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
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
    foveate train-draft -o draft --steps 500
    foveate train-draft llava-hf/llava-1.5-7b-hf my-receipts.jsonl -o draft --kind flash --learning-rate 8e-5
    foveate ask receipt.png "What is the total?" --draft draft
"""


class Kind(StrEnum):
    """Whose draft."""

    specvlm = "specvlm"
    flash = "flash"


def train_draft(
    model: OneModel = None,
    data: Conversations = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder to write.", show_default=False)] = None,
    kind: Annotated[Kind, typer.Option(help="Whose draft.")] = Kind.specvlm,
    compressor: Annotated[
        str | None,
        typer.Option(
            help="specvlm: how it reads images: gate (the question chooses), join, prune, pool, conv, resample, text.",
            show_default="gate",
        ),
    ] = None,
    queries: Annotated[
        int | None,
        typer.Option(
            min=1, help="Tokens of the resampler (specvlm) or of an image (flash).", show_default="2, flash 64"
        ),
    ] = None,
    guesses: Annotated[
        int | None, typer.Option(min=1, help="flash: tokens guessed at a time.", show_default="5")
    ] = None,
    own_answers: Annotated[
        bool, typer.Option("--own-answers/--data-answers", help="Learn what the model writes, or the data's answers.")
    ] = True,
    max_new_tokens: Annotated[int, typer.Option(min=2, help="Length at which own answers are cut off.")] = 64,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 500,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions a step.")] = 8,
    learning_rate: Annotated[float, typer.Option(help="Greatest step size; for large models 8e-5.")] = 1e-3,
    images: ImageFolder = None,
    limit: Limit = None,
    seed: Annotated[int, typer.Option(min=0, help="Of questions, first weights and chance.")] = 0,
    sides: LearningSides = None,
    difficulty: LearningDifficulty = None,
    held_out: Annotated[int, typer.Option(min=1, help="Held-out rendered questions to measure on.")] = 50,
    resume: GoOn = True,
    max_minutes: MaxMinutes = None,
    device: WhereItRuns = None,
    as_json: Json = False,
) -> None:
    """Train a draft: a small network that guesses what a model will write, so that it writes faster.

    The model answers questions, its weights stay as they are, and the draft learns its features and its words on the
    way. Stop it at any moment, by Ctrl-C or SIGTERM: the same command goes on from there. State and log are kept in a
    folder beside the output. At the end the draft is measured on held-out questions: tokens written a pass, the time
    beside the model alone, and how many answers are the same, which is all of them up to rounding.
    """
    if output is None:
        raise FoveateError("say which folder to write: -o draft.")
    data = list(data or [])
    if limit is not None and not data:
        raise FoveateError("--limit is for files; questions about rendered images have no end.")
    named = {"compressor": compressor, "queries": queries, "guesses": guesses}
    chosen = {name: value for name, value in named.items() if value is not None}
    if wrong := sorted(chosen.keys() & {Kind.specvlm: {"guesses"}, Kind.flash: {"compressor"}}[kind]):
        raise FoveateError(f"--{wrong[0]} is not for --kind {kind.value}.")
    with notes.status("loading foveate"):
        from foveate.loading import load
        from foveate.methods.decoding import draft_kinds, load_draft
        from foveate.training.methods import drafts, teacher_forcing
        from foveate.training.methods.shared.loop import TrainConfig
        from foveate.training.methods.relevance import RunDirectory
    config = TrainConfig(steps, batch_size, learning_rate, seed)
    own = max_new_tokens if own_answers else None
    pages = teacher_forcing.Pages(None if sides is None else sides_in(sides), difficulty)
    examples = teacher_forcing.samples(data, images, limit, seed, pages)
    about = {
        "model": identity(model),
        "kind": kind.value,
        "data": [hashlib.sha256(path.read_bytes()).hexdigest() for path in data],
        "rendered": None if data else [sides, difficulty],
        "own_answers": own,
        **chosen,
        **asdict(config),
    }
    folder = RunDirectory(output, about, resume)
    with notes.status(f"reading {model or 'the embedded model'}"):
        net, processor = load(model, device=device, plan=None)
    cls = draft_kinds()[kind.value]
    draft = cls.new(cls.config_class.of(net, seed=seed, **chosen))

    fitted = with_progress(
        kind.value,
        steps,
        max_minutes,
        lambda on_progress, stop: drafts.fit(net, processor, examples, draft, config, own, folder, on_progress, stop),
    )
    document: dict[str, Any] = {
        "command": command_line(),
        "finished": fitted.finished,
        "output": str(output) if fitted.finished else None,
        "model": model or "embedded",
        "kind": kind.value,
        "parameters": sum(parameter.numel() for parameter in draft.parameters()),
        "steps": fitted.step,
        "questions": fitted.step * batch_size,
        "log": str(folder.log.path),
    }
    if fitted.finished:
        fitted.network.bfloat16().save(output)  # it only guesses, and is measured as it is saved
        with notes.status(f"measuring on {held_out} held-out questions"):
            found = drafts.measure(net, processor, load_draft(output), pages.held_out(held_out), max_new_tokens)
        document |= {"held_out": held_out, "measured": found}
    if as_json:
        print_json(document)
        return
    if not fitted.finished:
        console.print(f"stopped after step {fitted.step} of {steps}; the same command goes on from here.")
        return
    console.print(f"{output} written: {steps} steps, {document['questions']} questions.")
    for way, row in document["measured"].items():
        console.print(
            f"  {way}: {row['acceptance_length']:.2f} tokens a pass, {row['seconds']:.1f} s where the model alone "
            f"takes {row['seconds_alone']:.1f} s, {row['identical']} of {row['answers']} answers the same",
            soft_wrap=True,
        )
