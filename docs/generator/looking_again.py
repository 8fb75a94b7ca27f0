"""Tables of `benchmarks/results/acquisition-*.json`, the results of `foveate train-method visionthink` and others."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def trained(root: Path) -> str:
    """A table for each run: accuracy, asking and image tokens, by need.

    Args:
        root: The repository.
    """
    from generator.accuracy import runs
    from generator.tables import table

    parts = []
    for run in runs(root, "acquisition"):
        rows = []
        for name, row in run["measured"].items():
            asked = (
                [_share(row[f"asked ({kind} print)"]) for kind in ("large", "small")] if name == "policy" else ["", ""]
            )
            accuracies = [_share(row[f"accuracy{part}"]) for part in ("", " (large print)", " (small print)")]
            rows.append([name, *accuracies, *asked, f"{row['image tokens']:.1f}"])
        header = [
            "",
            "right",
            "right, large print",
            "right, small print",
            "asked, large",
            "asked, small",
            "image tokens",
        ]
        stage = run["steps"] if run["finished"] else f"{run['steps']}, stopped before its end,"
        about = (
            f"`{run['method']}` on the {run['model']} model after {stage} steps of warm-up and GRPO, {run['held_out']} "
            f"pages; from `{run['path']}`, created by `{run['command']}`."
        )
        parts += [about, table(header, rows)]
    return "\n\n".join(parts) or "*Not measured yet.*"


def _share(value: dict[str, Any]) -> str:
    return f"{100 * value['rate']:.1f} % ({100 * value['low']:.1f} to {100 * value['high']:.1f})"
