"""Runs of the benchmark of released models: rows, resuming, refusals and files."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from foveate.benchmark.released import RESULT, ReleasedSettings, read_leaderboard, run
from foveate.benchmark.released.run import EVALUATIONS, SPEED
from foveate.core.errors import FoveateError
from foveate.report import build, read
from tests.benchmark.released.answer_sheet import SCORES, AnswerSheet
from tests.tiny_model import save_llava, save_llava_uhd

COMMAND = "foveate bench released --model tiny"
PLANS = ("full model", "random:50%", "downsample:50%", "divprune:50%")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_llava_uhd(tmp_path_factory.mktemp("models") / "tiny"))


def settings(model: str, /, **more: Any) -> ReleasedSettings:
    usual: dict[str, Any] = {"plans": ("divprune:50%",), "tasks": ("words", "totals"), "device": "cpu", "speed": False}
    return ReleasedSettings(**{"model": model} | usual | more)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_rows_are_those_of_a_loop(model: str, tmp_path: Path) -> None:
    document = run(settings(model), tmp_path, AnswerSheet(), command=COMMAND)
    assert document["kind"] == "released" and document["versions"]["lmms-eval"] == "0"
    rows = {(row["plan"], row["task"]): row for row in document["rows"]}
    assert set(rows) == {(plan, task) for plan in PLANS for task in ("words", "totals", "all")}
    for (plan, task), row in rows.items():
        right = total = same = 0.0
        for score, full in zip(SCORES[plan], SCORES["full model"], strict=True):
            right, total, same = right + score, total + full, same + (score == full)
        assert row["accuracy"] == pytest.approx(right / 6, abs=1e-4)
        assert row["relative"] == pytest.approx(right / total, abs=1e-4)
        assert row["agreement"] == pytest.approx(same / 6, abs=1e-4)
        assert row["low"] <= row["accuracy"] <= row["high"] and row["model"] == "tiny"
        assert row["relative_low"] <= row["relative"] <= row["relative_high"]
        assert row["count"] == 6 * (1 + (task == "all"))
        assert (row["tokens_in"], row["tokens_kept"]) == (100, 100 if plan == "full model" else 25)
    # Two tasks say more than one.
    wide, narrow = (rows["divprune:50%", task] for task in ("words", "all"))
    assert narrow["high"] - narrow["low"] < wide["high"] - wide["low"]


def test_a_run_that_was_interrupted_is_continued_and_gives_the_same(model: str, tmp_path: Path) -> None:
    pairs = [(task, plan) for task in ("words", "totals") for plan in PLANS]
    whole = AnswerSheet()
    expected = run(settings(model), tmp_path / "whole", whole, command=COMMAND)
    assert whole.asked == pairs
    for place, pair in enumerate(pairs):
        first, second = AnswerSheet(stop_before=pair), AnswerSheet()
        folder = tmp_path / str(place)
        with pytest.raises(KeyboardInterrupt):
            run(settings(model), folder, first, command=COMMAND)
        assert first.closed and first.asked == pairs[:place]
        assert not folder.exists() or len(files(folder)) == place  # complete evaluations, and nothing else
        assert run(settings(model), folder, second, command=COMMAND)["rows"] == expected["rows"]
        assert second.asked == pairs[place:]
    before = files(tmp_path / "whole" / EVALUATIONS)
    again = AnswerSheet()
    run(settings(model), tmp_path / "whole", again, command=COMMAND)
    assert not again.asked and files(tmp_path / "whole" / EVALUATIONS) == before


def test_plans_and_tasks_can_be_added_to_a_folder(model: str, tmp_path: Path) -> None:
    run(settings(model, tasks=("words",)), tmp_path, AnswerSheet(), command=COMMAND)
    more = AnswerSheet()
    document = run(settings(model, plans=("divprune:25%", "divprune:50%")), tmp_path, more, command=COMMAND)
    new = ("random:25%", "downsample:25%", "divprune:25%")
    assert [plan for task, plan in more.asked if task == "words"] == list(new)
    assert {plan for task, plan in more.asked if task == "totals"} == {*PLANS, *new}
    assert {row["plan"] for row in document["rows"] if row["task"] == "all"} == {*PLANS, *new}


def test_other_settings_and_other_questions_need_another_folder(model: str, tmp_path: Path) -> None:
    run(settings(model, tasks=("words",)), tmp_path, AnswerSheet(), command=COMMAND)
    with pytest.raises(FoveateError, match=r"other settings \(limit\); choose another folder"):
        run(settings(model, limit=3), tmp_path, AnswerSheet())
    trained_on = tmp_path / "tiny"
    shutil.copytree(model, trained_on)
    before = settings(str(trained_on)).described
    assert settings(str(trained_on)).described == before
    os.utime(trained_on / "model.safetensors", (0, 0))
    assert settings(str(trained_on)).described != before
    with pytest.raises(FoveateError, match="the questions of words have changed"):
        run(settings(model, tasks=("words",), plans=("divprune:25%",)), tmp_path, AnswerSheet(questions="others"))
    (tmp_path / EVALUATIONS / "other.json").write_text("{}")
    with pytest.raises(FoveateError, match="is no evaluation of this benchmark"):
        run(settings(model), tmp_path, AnswerSheet())


def test_a_plan_that_cannot_run_on_a_task_is_listed_and_has_no_mean(model: str, tmp_path: Path) -> None:
    sheet = AnswerSheet(refuses=[("totals", "divprune:50%")])
    reason = "divprune:50% does not fit totals."
    document = run(settings(model), tmp_path, sheet, command=COMMAND)
    assert document["impossible"] == [
        {
            "model": "tiny",
            "plan": "divprune:50%",
            "task": "totals",
            "code": "",
            "reason": reason,
        }
    ]
    assert [row["task"] for row in document["rows"] if row["plan"] == "divprune:50%"] == ["words"]
    again = AnswerSheet()
    assert run(settings(model), tmp_path, again, command=COMMAND)["rows"] == document["rows"] and not again.asked
    with pytest.raises(FoveateError, match="full model does not fit words"):
        run(settings(model), tmp_path / "other", AnswerSheet(refuses=[("words", "full model")]))


def test_refusals_come_before_the_first_question(model: str, tmp_path: Path) -> None:
    for said, chosen in (
        ("merges inside the encoder", settings(model, plans=("divprune:50%", "tome:25%"))),
        ("there is no task 'numbers'", settings(model, tasks=("words", "numbers"))),
    ):
        sheet = AnswerSheet()
        with pytest.raises(FoveateError, match=said):
            run(chosen, tmp_path, sheet)
        assert not sheet.asked and not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ("unknown method", {"plans": ("nonsense:3",)}),
        ("at least one plan", {"plans": ("full-model",)}),
        ("at least one task", {"tasks": ()}),
        ("there is no folder", {"model": "no/such/folder/at all"}),
        ("bfloat16", {"dtype": "int3"}),
        ("positive", {"limit": 0}),
        ("there is no model 'word'", {"model": "word", "speed": True}),
        ("cpu and cuda", {"device": "tpu"}),
        ("no image", {"image": "nowhere.png"}),
    ],
)
def test_settings_that_are_not_possible(model: str, said: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(FoveateError, match=said):
        settings(model, **wrong)


def test_controls_are_left_out_where_asked_or_where_the_family_refuses_them(
    model: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert settings(model, controls=False).compared == ("full model", "divprune:50%")
    assert settings(model).compared == PLANS
    assert settings(model, tasks=("textvqa", "chartqa", "textvqa_val")).tasks == ("textvqa_val", "chartqa")
    llava = str(save_llava(tmp_path_factory.mktemp("models")))
    document = run(settings(llava, tasks=("words",)), tmp_path, AnswerSheet(), command=COMMAND)
    plans = {row["plan"] for row in document["rows"]}
    refused = {line["plan"]: line["code"] for line in document["impossible"]}
    assert plans | set(refused) == set(PLANS) and not plans & set(refused)
    assert set(refused) <= {"random:50%", "downsample:50%"} and all(refused.values())


def test_speed_of_the_same_plans_is_in_the_result_and_the_report(model: str, tmp_path: Path) -> None:
    chosen = settings(model, speed=True, repeats=1)
    document = run(chosen, tmp_path, AnswerSheet(), command=COMMAND)
    assert {row["plan"] for row in document["speed"]["rows"]} == set(PLANS)
    results = read([tmp_path / RESULT])
    assert [source.kind for source in results.sources] == ["released", "speed"]
    assert results.models == ["tiny"] and (len(results.accuracy), len(results.speed)) == (12, 4)
    page = Path(build([tmp_path / RESULT], tmp_path / "report", pictures=False)["page"]).read_text(encoding="utf-8")
    for plan in PLANS:
        assert plan in page
    times = {row["plan"]: row["speed_up"] for row in document["speed"]["rows"]}
    rows = read_leaderboard(Path(document["leaderboard"]))
    assert {(row.plan, row.task) for row in rows} == {(plan, task) for plan in PLANS for task in ("words", "totals")}
    for row in rows:
        assert row.speed_up == pytest.approx(times[row.plan], abs=1e-4)
        assert (row.model, row.n, row.complete, row.command) == ("tiny", 6, row.task == "words", COMMAND)
        assert row.tokens_full_model == 100
    before = (tmp_path / SPEED).read_bytes()
    again = run(chosen, tmp_path, AnswerSheet(), command=COMMAND)
    assert json.loads(json.dumps(again["speed"]["rows"])) == json.loads(before)["rows"]  # measured once
