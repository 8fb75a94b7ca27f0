"""Files of the leaderboard: every value is checked, and every file of the repository is valid."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from foveate.benchmark.released import LeaderboardRow, read_leaderboard
from foveate.core.errors import FoveateError

FOLDER = Path(__file__).parents[3] / "leaderboard"

ROW: dict[str, Any] = {
    "format": 1, "model": "owner/name", "revision": "0123abc", "plan": "divprune:25%", "task": "chartqa",
    "metric": "relaxed_overall", "n": 2500, "complete": True, "score": 0.75, "low": 0.73, "high": 0.77,
    "relative": 0.9, "relative_low": 0.88, "relative_high": 0.92, "metrics": {"relaxed_overall": 0.75},
    "tokens": 100.0, "tokens_full_model": 400.0, "speed_up": 1.5, "dtype": "bfloat16", "device": "a GPU",
    "versions": {"foveate": "0.1", "torch": "2.0", "transformers": "5.0", "lmms-eval": "0.7.3"},
    "command": "foveate bench released --model owner/name --plans divprune:25%", "date": "2026-11-29",
}  # fmt: skip
FULL = ROW | {"plan": "full model", "relative": 1, "relative_low": 1, "relative_high": 1, "speed_up": None}


def saved(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_file_is_read(tmp_path: Path) -> None:
    full, row = read_leaderboard(saved(tmp_path / "a.jsonl", FULL, ROW))
    assert (full.plan, row.plan, row.score, row.versions["lmms-eval"]) == ("full model", "divprune:25%", 0.75, "0.7.3")


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ("unknown method", {"plan": "nonsense:3"}),
        ("format 2", {"format": 2}),
        ("score cannot be '75'", {"score": "75"}),
        ("n cannot be True", {"n": True}),
        ("complete cannot be 1", {"complete": 1}),
        ("ascend from 0 to 1", {"score": 0.8}),
        ("ascend from 0 to 1", {"score": 75, "low": 73, "high": 77}),
        ("ascend from 0 to 1", {"score": float("nan")}),
        ("relative", {"relative_low": 0.95}),
        ("n is at least 1", {"n": 0}),
        ("tokens", {"tokens": -1}),
        ("speed_up", {"speed_up": 0}),
        ("metrics must be numbers", {"metrics": {"anls": None}}),
        ("versions lacks lmms-eval", {"versions": {"foveate": "0.1", "torch": "2.0", "transformers": "5.0"}}),
        ("not `foveate bench released`", {"command": "foveate bench accuracy"}),
        ("YYYY-MM-DD", {"date": "29 November"}),
        ("model is empty", {"model": " "}),
        ("control characters", {"device": "a\x1b[31m GPU"}),
        ("is not known", {"comment": "a good one"}),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, said: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(FoveateError, match=said):
        read_leaderboard(saved(tmp_path / "a.jsonl", FULL, ROW | wrong))


@pytest.mark.parametrize(
    ("said", "rows"),
    [
        ("has no rows", []),
        ("line 2: a row is a JSON object", [FULL, 3]),
        ("line 1: score is missing", [{name: value for name, value in ROW.items() if name != "score"}]),
        ("no row of the full model on chartqa", [ROW]),
        ("divprune:25% on chartqa twice", [FULL, ROW, ROW]),
        ("several models", [FULL, ROW | {"device": "another GPU"}]),
        ("relative of the full model is 1", [FULL | {"relative_high": 1.5, "relative": 1.2}]),
    ],
)
def test_rows_that_do_not_fit_together_are_refused(tmp_path: Path, said: str, rows: list[Any]) -> None:
    with pytest.raises(FoveateError, match=said):
        read_leaderboard(saved(tmp_path / "a.jsonl", *rows))


def test_every_file_of_the_leaderboard_is_valid() -> None:
    names = [path.name for path in FOLDER.iterdir()]
    assert all(name == "README.md" or name.endswith(".jsonl") for name in names), names
    for path in FOLDER.glob("*.jsonl"):
        read_leaderboard(path)


def test_the_page_describes_every_field() -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    names = [
        name
        for line in page.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`(\w+)`", line.split("|")[1])
    ]
    assert names == [field.name for field in fields(LeaderboardRow)]
