"""What the commands share that train a small network beside a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from foveate.console import notes


def identity(model: str | None) -> str | None:
    """What tells a model from another in its place: its name, of a folder a hash that changes with its files."""
    from foveate.loading import locate

    place = Path(locate(model))
    if not place.is_dir():
        return model
    files = sorted(path for path in place.iterdir() if path.suffix in (".json", ".safetensors", ".bin"))
    seen = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()


def with_progress(what: str, steps: int, max_minutes: float | None, fit: Callable[[Any, Any], Any]) -> Any:
    """Train under a bar, until the end, Ctrl-C, SIGTERM or a number of minutes.

    Args:
        what: Stands before the bar until there is a loss.
        steps: Of the training.
        max_minutes: Stop cleanly after so many.
        fit: Trains; gets what takes the step and its loss, and what says that it has to stop.

    Returns:
        What `fit` returns.
    """
    from foveate.training.callbacks import StopRequest

    stop = StopRequest(max_minutes)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=notes, transient=True) as progress, stop.on_signals():
        task = progress.add_task(what, total=steps)

        def on_progress(step: int, loss: float) -> None:
            progress.update(task, completed=step, description=f"loss {loss:.4f}")

        return fit(on_progress, stop)
