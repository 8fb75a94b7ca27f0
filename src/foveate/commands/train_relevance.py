"""`foveate train-relevance`: the small network of the method `relevance`, trained on what a model's answers rest on."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from foveate.commands.options import GoOn, ImageFolder, Json, OneModel, WhereItRuns
from foveate.commands.training import identity
from foveate.console import console, notes, print_json
from foveate.core.errors import FoveateError

if TYPE_CHECKING:
    from foveate.training.batch_stream import Draw

EXAMPLES = """
    foveate train-relevance -o mapper.safetensors --rendered 500
    foveate train-relevance llava-hf/llava-1.5-7b-hf my-receipts.jsonl -o mapper.safetensors --own-answers
    foveate ask photo.jpg "What is this?" --model llava-hf/llava-1.5-7b-hf --plan "relevance(weights=mapper.safetensors):25%"
"""  # noqa: E501


def train_relevance(
    model: OneModel = None,
    data: Annotated[
        list[Path] | None,
        typer.Argument(help="JSON or JSONL files of conversations in LLaVA's format.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write (.safetensors).", show_default=False)
    ] = None,
    rendered: Annotated[
        int | None,
        typer.Option(min=2, help="Without files: questions about rendered images, 500 by default.", show_default=False),
    ] = None,
    images: ImageFolder = None,
    limit: Annotated[
        int | None, typer.Option(min=2, help="Read this many of the files' conversations.", show_default=False)
    ] = None,
    own_answers: Annotated[
        bool, typer.Option("--own-answers", help="Explain the model's own answers instead of the data's.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length at which own answers are cut off.")] = 64,
    epochs: Annotated[int, typer.Option(min=1, help="Times that the network sees every picture.")] = 30,
    learning_rate: Annotated[float, typer.Option(help="Greatest step size.")] = 3e-3,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures a step.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Of orders, rendered images and first weights.")] = 0,
    resume: GoOn = True,
    device: WhereItRuns = None,
    as_json: Json = False,
) -> None:
    """Train the network of the method relevance: from what the first layer looks at, to what an answer rests on.

    The model answers and is differentiated, once a sample; attention times its gradient, rolled out over all layers,
    tells how much each visual token matters. A few convolutions then learn to guess that. The model's weights stay as
    they are. What was found is kept in a folder beside the output, with a log: a run that is stopped goes on.
    """
    if output is None:
        raise FoveateError("say where to write the trained network: -o mapper.safetensors.")
    data = list(data or [])
    if data and rendered is not None:
        raise FoveateError("--rendered makes data where there are no files; leave out one of them.")
    if limit is not None and not data:
        raise FoveateError("--limit is for files; --rendered says how many rendered images there are.")
    with notes.status("loading foveate"):
        from foveate.loading import load
        from foveate.training.methods import relevance
    config = relevance.TrainConfig(epochs, learning_rate, batch_size, seed)
    samples: list[Draw]
    if data:
        samples = relevance.file_samples(data, images, limit, seed)
    else:
        samples = relevance.rendered_samples(rendered or 500, seed)
    about = {
        "model": identity(model),
        "data": [hashlib.sha256(path.read_bytes()).hexdigest() for path in data] or "rendered",
        "answers": f"own, {max_new_tokens} tokens at most" if own_answers else "of the data",
        "seed": seed,
    }
    folder = relevance.RunDirectory(output, about, resume)
    with notes.status(f"reading {model or 'the embedded model'}"):
        net, processor = load(model, device=device, plan=None)

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=notes, transient=True) as progress:
        tasks: dict[str, Any] = {}

        def on_progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done)

        own = max_new_tokens if own_answers else None
        found = relevance.find_pictures(net, processor, samples, folder, own, on_progress)
        learned, held = relevance.divide(found)
        mapper = relevance.fit(learned, held, config, folder, on_progress)
    relevance.save(mapper, output)
    losses = [line for line in folder.log.read() if "loss" in line]
    document = {
        "output": str(output),
        "model": model or "embedded",
        "samples": len(samples),
        "pictures": len(learned),
        "held_out": len(held),
        "epochs": epochs,
        "loss": [losses[0]["loss"], losses[-1]["loss"]],
        "held_out_loss": [losses[0]["held_out_loss"], losses[-1]["held_out_loss"]],
        "kept": relevance.kept_shares(mapper, held),
        "log": str(folder.log.path),
    }
    if as_json:
        print_json(document)
        return
    console.print(f"{output} written: {len(learned)} pictures of {len(samples)} samples, {epochs} epochs.")
    console.print(f"Relevance that stays in {len(held)} held-out pictures:")
    for budget, shares in document["kept"].items():
        listed = ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares.items())
        console.print(f"  {budget} of the tokens: {listed}")
