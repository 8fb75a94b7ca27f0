"""Video files as streams: the decoder, `foveate stream` and the example script."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

from foveate import FoveateError
from foveate.cli import main
from foveate.streaming import KeepAll, SinkWindow, SlidingWindow, UniformThinning, frames_of, parse_policy
from tests.docs.hub import save_qwen3
from tests.video_files import save_clip

SCRIPT = Path(__file__).parents[2] / "examples/streaming.py"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_qwen3(tmp_path_factory.mktemp("stream") / "model"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_clip(tmp_path_factory.mktemp("stream") / "clip.mkv", 24, fps=4))


def test_frames_of_a_file(clip: str, tmp_path: Path) -> None:
    def numbers(fps: float) -> list[int]:
        return [int(frame[0, 0, 0]) // 4 for _, frame in frames_of(clip, fps)]  # grey values are 4 n

    assert [time for time, _ in frames_of(clip, 2)] == [number / 2 for number in range(12)]
    assert numbers(2) == [*range(0, 24, 2)]
    assert numbers(3) == [0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 16, 17, 18, 20, 21, 22]
    assert len(list(frames_of(clip, 100))) == 24
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    for path, fps, message in (
        ("none.mp4", 1, "no video file at 'none.mp4'"),
        (bad, 1, "cannot be decoded as a video"),
        (clip, 0, "fps is a number"),
    ):
        with pytest.raises(FoveateError, match=message):
            next(frames_of(path, fps))


def test_policies_as_text() -> None:
    assert parse_policy("all") == KeepAll() and parse_policy("window:64") == SlidingWindow(64)
    assert parse_policy("sinks:4,60") == SinkWindow(4, 60) and parse_policy("even:9") == UniformThinning(9)
    for text in ("", "window", "window:x", "window:1,2", "sinks:4", "all:3", "last:4", "window:-1"):
        with pytest.raises(FoveateError, match="is no policy; write all, window:64"):
            parse_policy(text)


def test_the_command(model: str, clip: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["stream", clip, "What happens?", "--model", model]
    options = ["--every", "2", "--policy", "sinks:1,2", "--plan", "stc:50%", "--reuse", "--max-new-tokens", "3"]
    assert main([*line, *options, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [answer["time"] for answer in report["answers"]] == [2.0, 4.0, 5.5]
    assert report["frames"] == 12 and len({answer["cached_tokens"] for answer in report["answers"][1:]}) == 1
    assert main([*line, "--every", "4", "--max-new-tokens", "2"]) == 0
    assert [text.split()[0] for text in capsys.readouterr().out.splitlines() if " s " in text][:1] == ["4.0"]
    for every in ("0", "-1", "nan"):
        assert main([*line, "--every", every]) == 2
        assert "--every is a number of seconds above 0" in capsys.readouterr().err
    assert main([*line, "--policy", "window"]) == 2
    assert "is no policy" in capsys.readouterr().err


def test_answers_do_not_catch_up_after_a_gap(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(save_clip(tmp_path / "a.mp4", 8, 25, times=[0, 1, 2, 21, 22, 23, 24, 25], codec="mpeg4"))
    line = ["stream", path, "What?", "--model", model, "--every", "5", "--fps", "1", "--max-new-tokens", "1", "--json"]
    assert main(line) == 0
    assert [answer["time"] for answer in json.loads(capsys.readouterr().out)["answers"]] == [21.0, 25.0]


def test_the_example(
    model: str, clip: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", model, "--every", "2", "--window", "2", "--plan", "stc:50%", "--reuse"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), clip, "What happens?", *options, "--max-new-tokens", "3"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    *answers, last = capsys.readouterr().out.splitlines()
    times = [answer.split(" s: ")[0] for answer in answers if " s: " in answer]
    assert times == ["2.0", "4.0", "5.5"] and last.startswith("12 frames read, ")
