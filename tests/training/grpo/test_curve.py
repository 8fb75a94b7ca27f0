"""The plot of the log of GRPO."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from foveate.training.grpo.curve import draw_curve, running_mean
from foveate.training.log import RunLog


def test_means_are_of_the_last_values_that_a_step_has() -> None:
    entries = [{"step": 1, "a": 2.0}, {"step": 2}, {"step": 3, "a": 4.0}, {"step": 4, "a": 0.0}]
    assert running_mean(entries, "a", 2) == ([1, 3, 4], [2.0, 3.0, 2.0])
    assert running_mean(entries, "b", 2) == ([], [])


def test_runs_with_and_without_needs_are_drawn(tmp_path: Path) -> None:
    log, path = RunLog(tmp_path / "log.jsonl"), tmp_path / "curve.png"
    draw_curve(log, path)
    assert not path.exists()
    log.append({"step": 1, "reward": 1.0})
    draw_curve(log, path)
    plain = path.read_bytes()
    log.append({"step": 2, "reward": 0.5, "asked_small": 0.5, "correct_large": 1.0, "image_tokens": 40.0})
    draw_curve(log, path)
    assert path.read_bytes() != plain and Image.open(path).size == (990, 660)
