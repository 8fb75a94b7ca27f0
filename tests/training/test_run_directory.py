"""The directory of a run: whose it is, and its state."""

from pathlib import Path

import pytest
import torch

from foveate.core.errors import FoveateError
from foveate.training.run_directory import RunDirectory


def test_the_state_is_what_was_saved_last(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "out", {"model": None, "layers": [1, 2]})
    assert run.load_state(("step",)) is None
    for step in (1, 2):
        run.save_state({"step": step, "weights": torch.full((2,), float(step))})
    again = RunDirectory(tmp_path / "out", {"model": None, "layers": [1, 2]}).load_state(("step", "weights"))
    assert again is not None and again["step"] == 2 and again["weights"].tolist() == [2.0, 2.0]
    assert {path.name for path in run.path.iterdir()} == {"about.json", "state.pt"}
    with pytest.raises(FoveateError, match="of no such training run"):
        run.load_state(("epoch",))
    (run.path / "state.pt").write_bytes(b"damaged")
    with pytest.raises(FoveateError, match="remove it to begin anew"):
        run.load_state(("step",))


def test_another_run_is_refused_by_what_differs(tmp_path: Path) -> None:
    RunDirectory(tmp_path / "out", {"seed": 0, "steps": 5, "layers": None}).save_state({"step": 1})
    with pytest.raises(FoveateError, match="another layers, seed; remove it"):
        RunDirectory(tmp_path / "out", {"seed": 1, "steps": 5, "layers": [2]})
    with pytest.raises(FoveateError, match="leave --no-resume out"):
        RunDirectory(tmp_path / "out", {"seed": 0, "steps": 5, "layers": None}, resume=False)
    with pytest.raises(FoveateError, match="there is no folder"):
        RunDirectory(tmp_path / "none" / "out", {})


def test_a_run_that_did_nothing_is_replaced(tmp_path: Path) -> None:
    RunDirectory(tmp_path / "out", {"seed": 0})
    RunDirectory(tmp_path / "out", {"seed": 1}, resume=False).save_state({"step": 1})
    with pytest.raises(FoveateError, match="another seed"):
        RunDirectory(tmp_path / "out", {"seed": 0})
