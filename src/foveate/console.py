"""Output of commands: answers on standard output, messages on standard error."""

from __future__ import annotations

import json
import shlex
import sys
from typing import Any

import typer
from rich.console import Console

console = Console(highlight=False)
notes = Console(stderr=True, highlight=False)


def command_line() -> str:
    """Return the running command as it can be typed again."""
    return shlex.join(["foveate", *sys.argv[1:]])


def print_json(document: Any) -> None:
    """Print one JSON document on standard output.

    Args:
        document: What `json.dumps` can write. NaN and infinity are refused: they are not JSON.

    Raises:
        ValueError: If a number is not finite.
    """
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))
