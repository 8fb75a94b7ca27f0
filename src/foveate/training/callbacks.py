"""Callbacks of a running stage: logging, checkpoints, stopping and the progress display."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from foveate.core.errors import FoveateError
from foveate.training.recipe import Recipe, Stage


class StopRequest:
    """A request to end training after the current step: by a time limit or a signal.

    Args:
        max_minutes: Minutes from now, or None for no limit; 0 stops after one step.

    Raises:
        FoveateError: the number is negative, or none.
    """

    def __init__(self, max_minutes: float | None = None) -> None:
        if max_minutes is not None and not max_minutes >= 0:
            raise FoveateError(f"the limit must be 0 minutes or more, not {max_minutes:g}.")
        self._deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        self._requested = threading.Event()

    def request(self) -> None:
        """Request a clean stop after the current step."""
        self._requested.set()

    @property
    def requested(self) -> bool:
        """True once the time is over or a stop was requested."""
        return self._requested.is_set() or (self._deadline is not None and time.monotonic() >= self._deadline)

    @contextmanager
    def on_signals(self) -> Generator[None]:
        """Request a stop on SIGTERM and SIGINT while the context is open; a second SIGINT interrupts at once."""

        def handle(number: int, frame: Any) -> None:
            if number == signal.SIGINT and self._requested.is_set():
                raise KeyboardInterrupt
            self.request()

        if threading.current_thread() is not threading.main_thread():
            yield  # signals can only be handled in the main thread
            return
        previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


class StageCallback(TrainerCallback):
    """Callback that decides after every step whether to log, save and stop.

    Every checkpoint comes with a log entry, so that a resumed run continues the averages of the log where
    an uninterrupted one would have begun new ones.

    Args:
        recipe: Gives the intervals.
        stop: Checked after every step.
        agree: Combines this process's decision with those of the others.
    """

    def __init__(self, recipe: Recipe, stop: StopRequest, agree: Any) -> None:
        self._recipe = recipe
        self._stop = stop
        self._agree = agree
        self._saved = time.monotonic()

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Set the flags of `control` for the step that has just ended."""
        step, last = state.global_step, state.global_step >= state.max_steps
        due = time.monotonic() - self._saved >= 60 * self._recipe.save_minutes
        stop, due = self._agree(self._stop.requested), self._agree(due)
        control.should_training_stop = stop or last
        control.should_save = stop or last or due or step % self._recipe.save_every == 0
        control.should_log = control.should_save or step % self._recipe.log_every == 0
        if control.should_save:
            self._saved = time.monotonic()


class Display:
    """Progress display: a bar on a terminal, elsewhere one line per log entry.

    Args:
        console: The console.
        stage: The stage that is shown.
        done: Steps of earlier runs.
    """

    def __init__(self, console: Console, stage: Stage, done: int) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._stage = stage
        if console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            self._progress = Progress(*columns, TextColumn("{task.fields[losses]}"), console=console)
            self._task = self._progress.add_task(stage.name, total=stage.steps, completed=done, losses="")
            self._progress.start()

    def show(self, entry: dict[str, Any]) -> None:
        """Show one log entry."""
        names = (
            "answer_loss",
            "answer_accuracy",
            "cell_loss",
            "cell_accuracy",
            "early_cell_accuracy",
            "answer_attention_accuracy",
            "question_attention_accuracy",
            "samples_per_second",
        )
        losses = "  ".join(f"{name.replace('_', ' ')} {entry[name]:.4g}" for name in names if name in entry)
        if self._progress is not None:
            self._progress.update(self._task, completed=entry["stage_step"], losses=losses)
        else:
            minutes = entry["seconds"] / 60
            self._console.print(
                f"{self._stage.name} {entry['stage_step']}/{self._stage.steps}  {losses}  {minutes:.1f} min",
                soft_wrap=True,
            )

    def close(self) -> None:
        """Stop the bar."""
        if self._progress is not None:
            self._progress.stop()
