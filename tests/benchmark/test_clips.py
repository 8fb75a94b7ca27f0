"""Questions about rendered clips in the accuracy benchmark."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import foveate
from foveate import FoveateError
from foveate.benchmark.accuracy import AccuracySettings, answer_items, rows_path, run
from foveate.benchmark.budgets import budget_of, with_controls
from foveate.benchmark.tasks import ClipSettings, items, tasks_of
from foveate.cli import main
from foveate.core.full_model import FULL_MODEL
from foveate.synthetic.clips import CLIP_TASKS, render_clip
from tests.tiny_model import save_qwen

#: Frames that the small model reads as 8 x 8 tokens.
CLIPS = ClipSettings(size=(96, 96), seconds=(4, 5), fps=2)
PLANS = ("evs:50%", "uniform-frames:50%", "uniform-frames:50% + random:50%")


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_qwen(tmp_path_factory.mktemp("qwen"))


def test_the_group_of_clips_has_all_its_tasks() -> None:
    assert tasks_of(("clips",)) == CLIP_TASKS
    assert not {*tasks_of(("all",))} & {*CLIP_TASKS}


def test_questions_are_those_of_held_out_clips_and_follow_from_their_number() -> None:
    one, two = items("clip_order", 2, clips=CLIPS, first=3)
    (again,) = items("clip_order", 1, clips=CLIPS, first=4)
    assert (two.index, two.turns) == (again.index, again.turns)
    assert np.array_equal(two.clip.frames, again.clip.frames)
    drawn = render_clip("clip_order", 3, "heldout", (96, 96), seconds=5, fps=2, most=1)
    assert one.turns == ((drawn.question, drawn.answer),)
    assert np.array_equal(one.clip.frames, drawn.frames)
    assert one.pixels == 10 * 96 * 96
    assert one.clip.timestamps == drawn.timestamps


def test_plans_are_compared_on_the_same_clips(qwen: Path, tmp_path: Path) -> None:
    """Tokens of each row are those that the plan keeps; a fraction of frames has controls at the same fraction."""
    shape: dict[str, Any] = {"count": 2, "clips": CLIPS, "threads": 1, "batch_size": 2}
    settings = AccuracySettings(models=(str(qwen),), plans=PLANS, tasks=("clip_order", "clip_sign"), **shape)
    path = tmp_path / "clips.json"
    result = run(settings, path)
    assert not result["impossible"]
    rows = [json.loads(line) for line in rows_path(path).read_text(encoding="utf-8").splitlines()]
    answers = [row for row in rows if "text" in row]
    assert len(answers) == 2 * 2 * len(settings.plans)
    for row in answers:
        seconds = pairs = 4 + row["index"] % 2  # two frames per second, and a token covers two frames
        if row["plan"].startswith("uniform-frames:50%"):
            pairs = (seconds + 1) // 2  # one frame per second; the last pair is filled up
        assert row["tokens_in"] == 64 * pairs, row["plan"]
        share = {"full model": 1, "uniform-frames:50%": 1, "random:25%": 0.25, "downsample:25%": 0.25}
        assert row["tokens_kept"] == 64 * pairs * share.get(row["plan"], 0.5), row["plan"]
    everything = {row["plan"]: row for row in result["rows"] if row["task"] == "all"}
    assert {"full model", "random:50%", "downsample:50%", "random:25%", "downsample:25%", *PLANS} == {*everything}
    assert {row["task"] for row in result["rows"]} == {"clip_order", "clip_sign", "group:clips", "all"}
    resumed = run(settings, path, resume=True)
    assert resumed["rows"] == result["rows"]


def test_a_plan_is_followed_outside_of_a_run_too(qwen: Path) -> None:
    model, processor = foveate.load(str(qwen))
    asked = list(items("clip_moving", 1, clips=CLIPS))
    full, half, both = (
        answer_items(model, processor, plan, asked)[0]
        for plan in (None, "uniform-frames:50%", "uniform-frames:50% + evs:50%")
    )
    assert (half["plan"], both["plan"]) == ("uniform-frames:50%", "uniform-frames:50% + evs:50%")
    assert (half["tokens_kept"], both["tokens_kept"]) == (full["tokens_kept"] / 2, full["tokens_kept"] / 4)


def test_a_fraction_of_the_frames_is_one_of_the_tokens() -> None:
    assert budget_of("uniform-frames:50%") == "50%"
    assert budget_of("uniform-frames:50% + evs:50%") == "25%"
    assert budget_of("uniform-frames:8") is None
    assert with_controls(["uniform-frames:8"]) == ("full model", "uniform-frames:8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clips": ClipSettings(seconds=(6, 4))}, "seconds must be shortest,longest, got 6,4"),
        ({"clips": ClipSettings(size=(40, 40))}, "clip_order needs frames of at least 56 x 56 pixels"),
        ({"plans": ("uniform-frames:50%",), "tasks": ("sign", "clip_order")}, "ask about clips alone"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FoveateError, match=message):
        AccuracySettings(**{"tasks": ("clip_order",), **changes})


def test_a_model_without_clips_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["bench", "accuracy", "--tasks", "clip_order", "--count", "1", "-o", str(tmp_path / "none.json")]
    assert main([*arguments, "--plans", "pool:50%", "--threads", "1"]) == 2
    assert "take no clips here" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("option", ["--frame-size", "--seconds"])
def test_ranges_need_two_numbers(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "accuracy", "--tasks", "clips", option, "4"]) == 2
    assert f"{option} '4' must be the" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("percent", [10, 25, 50])
def test_what_the_page_says_about_plans_on_clips(percent):
    name = f"clip-accuracy-measure-video-{percent}.json"
    document = json.loads((Path(__file__).parents[2] / "benchmarks" / "results" / name).read_text(encoding="utf-8"))
    assert {row["count"] for row in document["rows"] if row["task"].startswith("clip_")} == {200}
    rows = {row["plan"].split(":")[0]: row for row in document["rows"] if row["task"] == "all"}
    chance = rows["random"]
    above = {name for name, row in rows.items() if row["low"] > chance["high"]} - {FULL_MODEL}
    below = {name for name, row in rows.items() if row["high"] < chance["low"]}
    assert above >= {"vidcom2", "divprune", "stc", "holitom", "hiprune", "fastvid", "prunevid"}
    reversed_at_10 = {"evs", "framefusion", "dcode", "vispruner"}
    if percent == 10:
        assert below >= reversed_at_10 | {"ts-llava", "pool"}
        assert rows["hiprune"]["accuracy"] == rows["fastvid"]["accuracy"]
    if percent == 50:
        assert above >= reversed_at_10
        assert max(rows[name]["low"] for name in above) < min(rows[name]["high"] for name in above)
