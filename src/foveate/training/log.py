"""The log of a run: a JSONL file, and a plot of its losses."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

from foveate.core.errors import FoveateError
from foveate.core.files import atomic_write, write_text
from foveate.core.text_files import read_text


class RunLog:
    """The file `log.jsonl`: one entry per line; entries that a resumed run repeats are removed.

    Args:
        path: The file; created with the first line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, entry: dict[str, Any]) -> None:
        """Append one entry."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All complete entries; the last one may be truncated by a kill and is then skipped."""
        if not self.path.exists():
            return []
        entries = []
        for line in read_text(self.path).splitlines():
            try:
                entries.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return entries

    def rewind(self, step: int) -> float:
        """Remove entries after global step `step`, which a resumed run repeats.

        Returns:
            Seconds of training that the remaining log accounts for.
        """
        kept = [entry for entry in self.read() if entry["step"] <= step]
        if self.path.exists():
            write_text(self.path, "".join(json.dumps(entry) + "\n" for entry in kept))
        return kept[-1]["seconds"] if kept else 0.0


#: Metrics of a stage's last entry in a training record.
_FINAL = (
    "loss",
    "answer_loss",
    "answer_accuracy",
    "cell_loss",
    "cell_accuracy",
    "early_cell_accuracy",
    "answer_attention_accuracy",
    "question_attention_accuracy",
)


def training_record(log: RunLog, step: int) -> dict[str, Any]:
    """Summary of a run for its model: samples, seconds, and the last metrics of every stage.

    The figures of a stage are those of its last line in the log.

    Args:
        log: The log; a killed run may have written lines after its last checkpoint.
        step: Global step of the weights that the record is of.
    """
    entries = [entry for entry in log.read() if entry["step"] <= step]
    if not entries:
        return {}
    stages = {entry["stage"]: entry for entry in entries}
    return {
        **{name: entries[-1][name] for name in ("samples", "seconds")},
        "steps": entries[-1]["step"],
        "stages": {
            stage: {"steps": last["stage_step"], **{name: last[name] for name in _FINAL if name in last}}
            for stage, last in stages.items()
        },
    }


def require_matplotlib() -> None:
    """Raise FoveateError if the plot of a log cannot be drawn, before the training rather than after."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise FoveateError("plots need matplotlib; install it with `pip install foveate[train]`.") from error


def draw_losses(log: RunLog, path: Path) -> None:
    """Plot losses above and accuracies below over the samples; vertical lines separate stages."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    entries = log.read()
    if not entries:
        return
    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    for axes, names, label in (
        (above, ("answer_loss", "cell_loss", "early_cell_loss"), "loss (nats)"),
        (
            below,
            (
                "answer_accuracy",
                "cell_accuracy",
                "early_cell_accuracy",
                "answer_attention_accuracy",
                "question_attention_accuracy",
            ),
            "accuracy",
        ),
    ):
        for name in names:
            # The line of a metric is interrupted in stages without it.
            points = [(entry["samples"], entry.get(name, math.nan)) for entry in entries]
            if any(name in entry for entry in entries):
                axes.plot(*zip(*points, strict=True), label=name.replace("_", " "), linewidth=1)
        for previous, entry in pairwise(entries):
            if previous["stage"] != entry["stage"]:
                axes.axvline(previous["samples"], color="grey", linewidth=0.8)
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(frameon=False)
    below.set_ylim(0, 1)
    below.set_xlabel("samples")
    with atomic_write(path) as partial:
        figure.savefig(partial, dpi=110, format="png")
