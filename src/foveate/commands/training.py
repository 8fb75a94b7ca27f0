"""Helpers shared by the training commands."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from foveate.console import notes

if TYPE_CHECKING:
    from foveate.training.callbacks import StopRequest
    from foveate.training.run_directory import OnProgress


def identity(model: str | None) -> str | None:
    """Return what identifies a model: its name, and for a folder a hash of its files."""
    from foveate.loading import locate

    place = Path(locate(model))
    if not place.is_dir():
        return model
    files = sorted(path for path in place.iterdir() if path.suffix in (".json", ".safetensors", ".bin"))
    contents = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()


def with_progress(what: str, max_minutes: float | None, fit: Callable[[OnProgress, StopRequest], Any]) -> Any:
    """Train with one progress bar per stage until the end, Ctrl-C, SIGTERM or a number of minutes.

    Args:
        what: Label of the bar before the first stage.
        max_minutes: Minutes after which training stops and can be resumed.
        fit: Training function; receives a progress callback and a stop request.

    Returns:
        What `fit` returns.
    """
    from foveate.training.callbacks import StopRequest

    stop = StopRequest(max_minutes)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=notes, transient=True) as progress, stop.on_signals():
        first = progress.add_task(what, total=None)
        tasks: dict[str, Any] = {}

        def on_progress(stage: str, done: int, total: int, loss: float | None) -> None:
            if stage not in tasks:
                tasks[stage] = first if not tasks else progress.add_task(stage)
            shown = stage if loss is None else f"{stage}, loss {loss:.4f}"
            progress.update(tasks[stage], completed=done, total=total, description=shown)

        return fit(on_progress, stop)
