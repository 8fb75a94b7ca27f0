"""Options shared by several commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveate.core.errors import FoveateError

if TYPE_CHECKING:
    from foveate.integrations.ray.cluster import Replicas

OneModel = Annotated[
    str | None, typer.Argument(help="Folder or Hub id of a model; the embedded model by default.", show_default=False)
]
Conversations = Annotated[
    list[Path] | None,
    typer.Argument(
        help="JSON or JSONL files of conversations in LLaVA's format; questions about rendered images by default.",
        show_default=False,
    ),
]
ImageFolder = Annotated[
    Path | None, typer.Option(help="Folder that image paths are relative to; each file's folder by default.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="Maximum number of conversations to read.", show_default=False)]
GoOn = Annotated[bool, typer.Option(help="Resume an interrupted run; --no-resume fails if there is one.")]
MaxMinutes = Annotated[
    float | None, typer.Option(help="Stop after this many minutes, so that the run can be resumed.", show_default=False)
]
WhereItRuns = Annotated[
    str | None, typer.Option(help="Device of the model; a GPU by default, if there is one.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
ResultAsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Difficulty = Annotated[
    float, typer.Option(min=0, max=1, help="Difficulty of rendered pages; 0 is large and clean type.")
]
Sides = Annotated[str, typer.Option(help="Shortest and longest side of rendered pages, in pixels.")]
LearningSides = Annotated[
    str | None,
    typer.Option(
        "--sides",
        help="Shortest and longest side of rendered pages in pixels, for training and evaluation.",
        show_default="96,512, evaluation on 128,512",
    ),
]
LearningDifficulty = Annotated[
    float | None,
    typer.Option(
        "--difficulty",
        min=0,
        max=1,
        help="Difficulty of rendered pages: maximum in training, and value in evaluation; 0 is large and clean type.",
        show_default="1, evaluation on 0.5",
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Number of questions per batch.")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; the GPU if there is one.", show_default=False)]
Dtype = Annotated[str, typer.Option(help="Data type of the weights: auto, float32, bfloat16 or float16.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; PyTorch's default.", show_default=False)]
Models = Annotated[str, typer.Option(help="Comma-separated models: embedded, folders and Hub ids.")]
OnRay = Annotated[bool, typer.Option("--ray", help="Answer with replicas on a Ray cluster.")]
CountOfReplicas = Annotated[
    int | None, typer.Option(min=1, help="With --ray: number of model replicas.", show_default="1")
]
ReplicaCPUs = Annotated[
    float | None, typer.Option(help="With --ray: CPUs per replica; may be a fraction.", show_default="1")
]
ReplicaGPUs = Annotated[
    float | None, typer.Option(help="With --ray: GPUs per replica; may be a fraction.", show_default="0")
]
RayAddress = Annotated[
    str | None,
    typer.Option(help="With --ray: host:port of a cluster, or auto.", show_default="a local cluster for this run"),
]
HubDevice = Annotated[
    str | None, typer.Option(help="Device: cpu, cuda, cuda:1.", show_default="the first GPU, or the CPU")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a model on the Hub.", show_default="main")]
AttnImplementation = Annotated[
    str | None,
    typer.Option(
        help="Attention implementation: sdpa, eager or flash_attention_2.", show_default="that of transformers"
    ),
]
BenchDtype = Annotated[
    str | None,
    typer.Option(help="Data type: float32, bfloat16 or float16; bfloat16 on a GPU, else float32.", show_default=False),
]
BenchAttention = Annotated[
    str,
    typer.Option(
        "--attn-implementation",
        "--attention",
        help="Attention implementation of all models: sdpa, or flash_attention_2 if installed.",
    ),
]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        help="In place of --device: auto divides the model among devices; needs accelerate.", show_default=False
    ),
]


def loading_options(
    revision: str | None, attn_implementation: str | None, device_map: str | None, **others: Any
) -> dict[str, Any]:
    """Return the options of `foveate.load` that a command line names; others keep their defaults."""
    options = {"revision": revision, "attn_implementation": attn_implementation, "device_map": device_map, **others}
    return {name: value for name, value in options.items() if value is not None}


def replicas_asked(
    ray: bool, count: int | None, cpus: float | None, gpus: float | None, address: str | None
) -> Replicas | None:
    """Return the replicas of --ray, or None without it.

    Raises:
        FoveateError: options of --ray are used without it, or a resource is not possible.
    """
    from foveate.integrations.ray.cluster import Replicas

    if ray:
        return Replicas(
            1 if count is None else count, 1 if cpus is None else cpus, 0 if gpus is None else gpus, address
        )
    if any(option is not None for option in (count, cpus, gpus, address)):
        raise FoveateError("--replicas, --replica-cpus, --replica-gpus and --ray-address need --ray.")
    return None


def given_options(context: typer.Context) -> dict[str, str]:
    """Return the parameters that a command line names, with the option of each: {"as_json": "--json"}."""
    return {
        str(parameter.name): parameter.opts[0]
        for parameter in context.command.params
        if (source := context.get_parameter_source(str(parameter.name))) is not None and source.name == "COMMANDLINE"
    }


def refuse_others(context: typer.Context, option: str, *possible: str) -> None:
    """Refuse the options of a command line that have no effect together with `option`.

    Args:
        context: Of the command.
        option: As it is written, such as --papers.
        possible: Names of the parameters that have one, that of `option` among them.

    Raises:
        FoveateError: there are others.
    """
    others = [name for parameter, name in given_options(context).items() if parameter not in possible]
    if others:
        raise FoveateError(f"{' and '.join(others)} would have no effect with {option}: leave out one or the other.")
