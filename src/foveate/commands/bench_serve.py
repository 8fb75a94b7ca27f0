"""`foveate bench serve`: performance of plans in a running server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Column, Table

from foveate.commands.options import ResultAsJson
from foveate.console import command_line, console, notes, print_json
from foveate.core.errors import FoveateError

EXAMPLES = """
    foveate bench serve http://localhost:8000/v1 --plans divprune:25%
    foveate bench serve http://localhost:8000/v1 --server vllm --plans "pool:64; hiprune:64" --clients 1,8,32
    foveate bench serve http://localhost:8000/v1 --server vllm --frames 32 --plans evs:50% \
        --against "EVS of vLLM=http://localhost:8001/v1"
"""


def serve(
    url: Annotated[str, typer.Argument(help="Base URL of the server, up to /v1.")],
    plans: Annotated[
        list[str] | None,
        typer.Option(help="Plans, separated by ; or in repeated options; compared with the full model."),
    ] = None,
    server: Annotated[
        str,
        typer.Option(help="Kind of server: foveate (`foveate serve`) or vllm (with foveate's plug-in)."),
    ] = "foveate",
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=URL",
            help="Another server of this kind, asked in the same turns without naming a plan; can be repeated.",
        ),
    ] = None,
    clients: Annotated[str, typer.Option(help="Comma-separated numbers of concurrent clients.")] = "1,8,32",
    requests: Annotated[int, typer.Option(help="Requests per turn; at least one per client.")] = 32,
    turns: Annotated[int, typer.Option(help="Number of measured turns.")] = 3,
    side: Annotated[int, typer.Option(help="Side of the square images, in pixels.")] = 336,
    frames: Annotated[
        int, typer.Option(help="Frames of the clip that a request shows in place of an image; 0: an image.")
    ] = 0,
    new_tokens: Annotated[int, typer.Option(help="Maximum number of tokens of an answer.")] = 16,
    model: Annotated[str, typer.Option(help="Model name at the server.", show_default="the first one")] = "",
    api_key: Annotated[
        str, typer.Option(envvar="OPENAI_API_KEY", help="API key of the server.", show_default=False)
    ] = "none",
    note: Annotated[str, typer.Option(help="Note about the machine, stored in the result.")] = "",
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON file of the result.")] = Path(
        "benchmarks/results/serving.json"
    ),
    as_json: ResultAsJson = False,
) -> None:
    """Measure plans in a running server: requests per second, time to first token, time between tokens.

    The server must be running: `foveate serve`, or vLLM with foveate's plug-in and --trust-request-mm-kwargs. Every
    number of clients asks the full model and every plan in turns, each request about a different image, or with
    --frames about a different clip. Ratios compare consecutive turns; above 1 the plan is better.
    """
    from foveate.benchmark import serving as benchmark
    from foveate.commands.lists import numbers_in, plans_in

    settings = benchmark.ServingSettings(
        url=url,
        plans=plans_in(plans),
        dialect=server,
        against=tuple(_named(text) for text in against or []),
        clients=numbers_in(clients, "--clients"),
        requests=requests,
        turns=turns,
        side=side,
        frames=frames,
        new_tokens=new_tokens,
        model=model,
        api_key=api_key,
    )
    command = command_line()
    results = benchmark.run(settings, output, command=command, note=note, report=notes.print)
    if as_json:
        print_json(results)
        return
    header, rows = benchmark.table(results)
    shown = Table(*(Column(name, overflow="fold") for name in header), box=SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        shown.add_row(*row)
    console.print(shown)
    console.print(f"written: {output}")


def _named(text: str) -> tuple[str, str]:
    name, equals, url = text.partition("=")
    if not (name and equals and url):
        raise FoveateError(f"--against is NAME=URL, such as 'other=http://localhost:8001/v1', not {text!r}.")
    return name, url
