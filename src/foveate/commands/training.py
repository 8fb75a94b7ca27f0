"""Helpers shared by the training commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from foveate.console import notes

if TYPE_CHECKING:
    from foveate.training.callbacks import StopRequest
    from foveate.training.run_directory import OnProgress


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
