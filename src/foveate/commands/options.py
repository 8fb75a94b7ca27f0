"""Options shared by several commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foveate.core.errors import FoveateError

if TYPE_CHECKING:
    from foveate.integrations.ray.connecting import Replicas

OneModel = Annotated[
    str | None, typer.Argument(help="Folder or Hub id of a model; the embedded one by default.", show_default=False)
]
Conversations = Annotated[
    list[Path] | None,
    typer.Argument(
        help="JSON or JSONL files of conversations in LLaVA's format; else questions about rendered images.",
        show_default=False,
    ),
]
ImageFolder = Annotated[Path | None, typer.Option(help="Folder of the files' image paths; each file's own by default.")]
Limit = Annotated[
    int | None, typer.Option(min=1, help="Read this many of the files' conversations.", show_default=False)
]
GoOn = Annotated[
    bool, typer.Option(help="Go on with what a stopped run left; --no-resume refuses if there is something.")
]
MaxMinutes = Annotated[float | None, typer.Option(help="Stop cleanly after this many minutes.", show_default=False)]
WhereItRuns = Annotated[
    str | None, typer.Option(help="Where the model runs; a GPU by default, if there is one.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
ResultAsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Difficulty = Annotated[float, typer.Option(min=0, max=1, help="Of rendered pages: 0 is large and clean type.")]
Sides = Annotated[str, typer.Option(help="Shortest and longest side of rendered pages, in pixels.")]
LearningSides = Annotated[
    str | None,
    typer.Option(
        "--sides",
        help="Shortest and longest side of rendered pages, in pixels, to learn from and to be measured on.",
        show_default="96,512, measured on 128,512",
    ),
]
LearningDifficulty = Annotated[
    float | None,
    typer.Option(
        "--difficulty",
        min=0,
        max=1,
        help="Of rendered pages: the greatest to learn from, and the one to be measured on; 0 is large and clean type.",
        show_default="1, measured on 0.5",
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Questions answered at once.")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; the GPU where there is one.", show_default=False)]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Threads of the CPU; all that PyTorch takes.", show_default=False)
]
Models = Annotated[str, typer.Option(help="embedded, folders and Hub ids, with commas.")]
OnRay = Annotated[bool, typer.Option("--ray", help="Answer with replicas on a Ray cluster.")]
CountOfReplicas = Annotated[
    int | None, typer.Option(min=1, help="With --ray: processes that hold the model.", show_default="1")
]
ReplicaCPUs = Annotated[
    float | None, typer.Option(help="With --ray: CPUs of each replica; may be a fraction.", show_default="1")
]
ReplicaGPUs = Annotated[
    float | None, typer.Option(help="With --ray: GPUs of each replica; may be a fraction.", show_default="0")
]
RayAddress = Annotated[
    str | None,
    typer.Option(help="With --ray: host:port of a cluster, or auto.", show_default="one on this machine for this run"),
]
HubDevice = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1.", show_default="the first GPU, or the CPU")]


def replicas_asked(
    ray: bool, count: int | None, cpus: float | None, gpus: float | None, address: str | None
) -> Replicas | None:
    """Return the replicas of --ray, or None without it.

    Raises:
        FoveateError: options of --ray stand without it, or replicas cannot be so.
    """
    from foveate.integrations.ray.connecting import Replicas

    if ray:
        return Replicas(
            1 if count is None else count, 1 if cpus is None else cpus, 0 if gpus is None else gpus, address
        )
    if any(one is not None for one in (count, cpus, gpus, address)):
        raise FoveateError("--replicas, --replica-cpus, --replica-gpus and --ray-address need --ray.")
    return None
