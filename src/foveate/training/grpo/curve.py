"""A plot of the log of GRPO: how often the model asks and answers rightly, and how many image tokens it reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foveate.core.files import atomic_write
from foveate.training.log import RunLog

#: Shares in the upper panel, in the order of the legend.
_SHARES = {
    "asked_small": ("asked, small print", "tab:red", "-"),
    "asked_large": ("asked, large print", "tab:blue", "-"),
    "correct_small": ("right, small print", "tab:red", ":"),
    "correct_large": ("right, large print", "tab:blue", ":"),
}


def draw_curve(log: RunLog, path: Path, window: int = 10) -> None:
    """Plot shares by need, and image tokens below; where the task has no need of more, the rewards.

    Args:
        log: Of GRPO; nothing is drawn where it is empty.
        path: PNG file.
        window: Steps of which every point is the mean.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    entries = log.read()
    if not entries:
        return
    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    shares = {name: style for name, style in _SHARES.items() if any(name in entry for entry in entries)}
    if shares:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        for name, (label, colour, line) in shares.items():
            above.plot(*running_mean(entries, name, window), label=label, color=colour, linestyle=line)
        above.set_ylim(-0.02, 1.02)
        above.set_ylabel("share of rollouts")
        above.grid(alpha=0.3)
        above.legend(frameon=False, ncols=2)
    else:
        below = figure.subplots()
    name = "image_tokens" if shares else "reward"
    below.plot(*running_mean(entries, name, window), color="black")
    below.set_ylabel(name.replace("_", " "))
    below.set_xlabel(f"step of GRPO (means of {window} steps)")
    below.grid(alpha=0.3)
    with atomic_write(path) as partial:
        figure.savefig(partial, dpi=110, format="png")


def running_mean(entries: Sequence[dict[str, Any]], name: str, window: int) -> tuple[list[int], list[float]]:
    """Steps that have a value, and the mean of the last `window` values at each."""
    known = [(entry["step"], entry[name]) for entry in entries if name in entry]
    means = []
    for end in range(1, len(known) + 1):
        last = [value for _, value in known[max(0, end - window) : end]]
        means.append(sum(last) / len(last))
    return [step for step, _ in known], means
