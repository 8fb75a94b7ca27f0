"""The example script reads a file as a stream."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from tests.docs.hub import save_qwen3
from tests.video_files import save_clip

SCRIPT = Path(__file__).parents[2] / "examples/streaming.py"


def test_answers_come_every_few_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, clip = save_qwen3(tmp_path / "model"), save_clip(tmp_path / "clip.mkv", 24, fps=4)
    options = ["--model", str(model), "--every", "2", "--window", "2", "--plan", "stc:50%", "--reuse"]
    monkeypatch.setattr(
        sys, "argv", [str(SCRIPT), str(clip), "What happens?", *options, "--fps", "2", "--max-new-tokens", "3"]
    )
    runpy.run_path(str(SCRIPT), run_name="__main__")
    *answers, last = capsys.readouterr().out.splitlines()
    times = [answer.split(" s: ")[0] for answer in answers if " s: " in answer]
    assert times == ["2.0", "4.0", "5.5"] and last.startswith("12 frames read, ")
