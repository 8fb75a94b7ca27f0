"""Options that several commands have, each said once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
BatchSize = Annotated[int, typer.Option(min=1, help="Questions answered at once.")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; the GPU where there is one.", show_default=False)]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Threads of the CPU; all that PyTorch takes.", show_default=False)
]
Models = Annotated[str, typer.Option(help="embedded, folders and Hub ids, with commas.")]
HubDevice = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1.", show_default="the first GPU, or the CPU")]
