"""Runs of the accuracy benchmark with the embedded model: what is written, and that stopping changes nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from foveate import FoveateError, load
from foveate.benchmark import accuracy
from foveate.benchmark.accuracy import AccuracySettings, answer_items, rows_path, run
from foveate.benchmark.results import write_json
from foveate.benchmark.rows import Rows
from foveate.benchmark.tasks import items
from foveate.cli import main
from tests.full_disk import room
from tests.tiny_model import save_llava_uhd

SMALL: dict[str, Any] = {"count": 3, "sides": (128, 192), "difficulty": 0.2, "batch_size": 2, "threads": 1}
TASKS = ("shape_colour", "chat")
PLANS = ("full model", "random:25%", "downsample:25%", "divprune:25%")


@pytest.fixture(scope="module", autouse=True)
def _loaded_once() -> Generator[None]:
    """The embedded model need not be read from disk for every run."""
    kept = lru_cache(load)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accuracy, "load", kept)
        yield


@pytest.fixture(scope="module")
def settings() -> AccuracySettings:
    return AccuracySettings(plans=("divprune:25%", "tome:25%"), tasks=TASKS, **SMALL)


@pytest.fixture(scope="module")
def result(settings, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    path = tmp_path_factory.mktemp("accuracy") / "small.json"
    return path, run(settings, path, command="foveate bench accuracy")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in rows_path(path).read_text(encoding="utf-8").splitlines()]


def answers(path: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    rows = [line for line in lines(path) if "text" in line]
    found = {(row["plan"], row["task"], row["index"], row["turn"]): row for row in rows}
    assert len(found) == len(rows)
    return found


def test_the_result_is_what_was_written(result, settings):
    path, document = result
    assert json.loads(path.read_text(encoding="utf-8")) == json.loads(json.dumps(document))
    assert {row["plan"] for row in document["rows"]} == set(PLANS)
    assert {row["task"] for row in document["rows"]} == {
        *("shape_colour", "chat", "group:chat, first question", "group:chat, later questions", "group:colour", "all"),
    }
    (impossible,) = document["impossible"]
    assert (impossible["model"], impossible["plan"]) == ("embedded", "tome:25%")
    assert impossible["code"] == "needs-one-token-per-patch" and impossible["reason"].startswith("tome merges inside")
    assert document["settings"]["plans"] == settings.plans
    assert document["kind"] == "accuracy" and document["command"] == "foveate bench accuracy"
    assert document["hardware"]["threads"] == 1 and document["versions"]["foveate"]


def test_every_plan_answers_the_same_questions(result):
    path, _ = result
    found = answers(path)
    asked = {plan: {key[1:]: (row["question"], row["answer"]) for key, row in found.items() if key[0] == plan}
             for plan in PLANS}  # fmt: skip
    assert all(asked[plan] == asked["full model"] for plan in PLANS)
    expected = {
        (item.task, item.index, turn): pair
        for task in TASKS
        for item in items(task, 3, sides=(128, 192), difficulty=0.2)
        for turn, pair in enumerate(item.turns)
    }
    assert asked["full model"] == expected
    for (plan, *_), row in found.items():
        share = row["tokens_kept"] / row["tokens_in"]
        assert share == 1 if plan == "full model" else 0.2 < share < 0.3


def test_answers_of_the_run_are_those_of_answer_items(result):
    path, _ = result
    model, processor = load(plan=None)
    asked = list(items("chat", 3, sides=(128, 192), difficulty=0.2))
    for plan in ("full model", "divprune:25%"):
        rows = answer_items(model, processor, plan, asked, batch_size=2)
        assert [(row["index"], row["turn"]) for row in rows] == sorted((row["index"], row["turn"]) for row in rows)
        for row in rows:
            assert answers(path)[plan, "chat", row["index"], row["turn"]] == {"model": "embedded", **row}


def test_a_finished_run_is_not_asked_again(result, settings, monkeypatch):
    path, document = result
    before = rows_path(path).read_bytes()
    monkeypatch.setattr(accuracy, "load", None)  # would be called
    again = run(settings, path, resume=True, command=document["command"])
    assert again["rows"] == document["rows"]
    assert rows_path(path).read_bytes() == before


def test_answers_that_were_written_before_refusals_had_codes_are_read(result, settings, tmp_path, monkeypatch):
    path, document = result
    copy = tmp_path / "older.json"
    lines = [json.loads(line) for line in rows_path(path).read_text(encoding="utf-8").splitlines()]
    for line in lines:
        line.get("impossible", {}).pop("code", None)
    rows_path(copy).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    monkeypatch.setattr(accuracy, "load", None)  # would be called
    (impossible,) = run(settings, copy, resume=True)["impossible"]
    assert impossible == document["impossible"][0] | {"code": ""}


def test_a_run_goes_on_with_more_plans_and_tasks(result, settings, tmp_path):
    path, document = result
    copy = tmp_path / "more.json"
    rows_path(copy).write_bytes(rows_path(path).read_bytes())
    more = AccuracySettings(
        plans=("divprune:25%", "pool:25%"), tasks=("shape_colour", "sign"), **{**SMALL, "batch_size": 3}
    )
    wider = run(more, copy, resume=True)
    assert answers(copy).items() >= answers(path).items()
    assert {key[1] for key in answers(copy) if key[0] == "pool:25%"} == {"shape_colour", "sign"}
    old, new = (
        next(row for row in rows["rows"] if (row["plan"], row["task"]) == ("divprune:25%", "shape_colour"))
        for rows in (document, wider)
    )
    assert old == new


def test_what_is_there_is_not_overwritten_or_mixed(result, settings, tmp_path):
    path, _ = result
    with pytest.raises(FoveateError, match="has answers already; continue with --resume"):
        run(settings, path)
    other = AccuracySettings(plans=("divprune:25%",), tasks=TASKS, **{**SMALL, "difficulty": 0.5})
    with pytest.raises(FoveateError, match=r"other settings \(difficulty\)"):
        run(other, path, resume=True)
    strange = tmp_path / "strange.json"
    rows_path(strange).write_text("nothing of ours\n", encoding="utf-8")
    with pytest.raises(FoveateError, match="has no answers of this benchmark"):
        run(settings, strange, resume=True)


def test_a_line_that_was_cut_off_is_asked_again(result, settings, tmp_path):
    path, document = result
    whole = rows_path(path).read_text(encoding="utf-8").splitlines(keepends=True)
    # In the middle of a line, behind one, and within the answers to one chat.
    first = next(number for number, line in enumerate(whole) if '"turn": 1' in line)
    for kept, tail in ((12, whole[12][:30]), (len(whole) - 1, ""), (first, whole[first].rstrip("\n"))):
        copy = tmp_path / f"cut-{kept}.json"
        rows_path(copy).write_text("".join(whole[:kept]) + tail, encoding="utf-8")
        rest = run(settings, copy, resume=True, command=document["command"])
        assert answers(copy) == answers(path)
        assert rest["rows"] == document["rows"]


def test_separators_in_answers_end_no_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    answers = [
        {"model": "m", "plan": "full model", "task": "chat", "index": index, "turn": 0, "text": text}
        for index, text in enumerate(("a\u2028b", "c\x85", "d\u2029", "e"))
    ]
    Rows(path, {}).add(answers)
    before = path.read_bytes()
    assert Rows(path, {}, resume=True).rows == answers
    assert path.read_bytes() == before


def test_tasks_about_clips_can_be_added(tmp_path):
    path, row = tmp_path / "rows.jsonl", {"model": "m", "plan": "p", "task": "t", "index": 0, "turn": 0}
    Rows(path, {"count": 1}).add([row])
    for clips in ({"clips": [2.0]}, {}, {"clips": [2.0]}):
        assert Rows(path, {"count": 1, **clips}, resume=True, partial=("clips",)).rows == [row]
    for settings in ({"count": 1, "clips": [3.0]}, {"count": 2}):
        with pytest.raises(FoveateError, match="other settings"):
            Rows(path, settings, resume=True, partial=("clips",))


def test_answers_to_a_file_that_has_changed_are_not_gone_on_with(tmp_path):
    Image.new("RGB", (64, 64), "white").save(tmp_path / "page.png")
    data, path = tmp_path / "questions.jsonl", tmp_path / "result.json"

    def settings(answer: str) -> AccuracySettings:
        turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": answer}]
        data.write_text(json.dumps({"image": "page.png", "conversations": turns}) + "\n", encoding="utf-8")
        return AccuracySettings(tasks=(str(data),), count=1, batch_size=1, threads=1)

    run(settings("untouched"), path)  # also the former name of the full model
    assert run(settings("untouched"), path, resume=True)["rows"]
    with pytest.raises(FoveateError, match="answers to other questions of .*questions.jsonl, which has changed"):
        run(settings("two"), path, resume=True)


def test_answers_of_a_model_that_has_changed_are_not_gone_on_with(tmp_path):
    folder, path = save_llava_uhd(tmp_path / "model"), tmp_path / "result.json"

    def settings(*models: str) -> AccuracySettings:
        return AccuracySettings(models=models, tasks=("shape_colour",), **{**SMALL, "count": 1})

    first = run(settings(str(folder)), path)
    assert run(settings(str(folder)), path, resume=True)["rows"] == first["rows"]
    assert len(run(settings(str(folder), "embedded"), path, resume=True)["rows"]) == 2 * len(first["rows"])
    before = rows_path(path).read_bytes()
    weights = next(folder.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    with pytest.raises(FoveateError, match=r"answers of .*model with other weights"):
        run(settings("embedded", str(folder)), path, resume=True)
    assert rows_path(path).read_bytes() == before


def test_a_model_that_cannot_be_loaded_leaves_no_answers_to_continue(tmp_path):
    folder, path = save_llava_uhd(tmp_path / "model"), tmp_path / "result.json"
    settings = AccuracySettings(models=(str(folder),), tasks=("shape_colour",), **{**SMALL, "count": 1})
    weights = next(folder.glob("*.safetensors"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    with pytest.raises(FoveateError):
        run(settings, path)
    weights.write_bytes(whole)
    assert run(settings, path)["rows"]


def command(path: Path, *more: str) -> list[str]:
    start = [sys.executable, "-m", "foveate", "bench", "accuracy", "--plans", "divprune:25%; tome:25%"]
    start += ["--tasks", ",".join(TASKS), "--count", "3", "--sides", "128,192", "--difficulty", "0.2"]
    return [*start, "--batch-size", "2", "--threads", "1", "-o", str(path), *more]


def stopped(path: Path, how: signal.Signals, count: int) -> subprocess.Popen:
    """Start the command and send it a signal as soon as it has answered something."""
    process = subprocess.Popen(command(path), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < until:
        file = rows_path(path)
        if file.exists() and file.read_text(encoding="utf-8").count('"text"') >= count:
            break
        time.sleep(0.01)
    process.send_signal(how)
    process.wait(timeout=120)
    return process


@pytest.mark.skipif(os.name == "nt", reason="limits of POSIX")
def test_a_full_disk_loses_nothing(result, settings, tmp_path, capsys):
    path, document = result
    full = tmp_path / "full.json"
    size = len(rows_path(path).read_bytes())
    with room(size // 2):
        assert main(command(full)[3:]) == 2
    assert capsys.readouterr().err.endswith("full.rows.jsonl could not be written: File too large.\n")
    before = rows_path(full).read_bytes()
    assert size // 2 - 500 < len(before) <= size // 2 and not full.exists()
    with room(100):  # no room for repairing the file either: what it holds stays
        assert main(command(full, "--resume")[3:]) == 2
    assert rows_path(full).read_bytes() == before
    with room(size + 100):  # room for the answers, not for the result
        assert main(command(full, "--resume")[3:]) == 2
    assert sorted(file.name for file in tmp_path.iterdir()) == [rows_path(full).name]
    rest = run(settings, full, resume=True, command=document["command"])
    assert rest["rows"] == document["rows"] and answers(full) == answers(path)
    whole = full.read_bytes()
    with room(100), pytest.raises(FoveateError, match="full.json could not be written"):
        write_json(full, document)
    assert full.read_bytes() == whole and len(list(tmp_path.iterdir())) == 2


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_stood(result, settings, tmp_path):
    path, document = result
    killed = tmp_path / "killed.json"
    process = stopped(killed, signal.SIGKILL, 3)
    assert process.returncode == -signal.SIGKILL
    assert not killed.exists()
    before = len(rows_path(killed).read_text(encoding="utf-8").splitlines())
    assert 3 < before < len(lines(path))
    done = subprocess.run(command(killed, "--resume", "--json"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == document["rows"] == json.loads(killed.read_text())["rows"]
    assert answers(killed) == answers(path)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_an_interrupted_run_leaves_a_result(result, tmp_path):
    path, _ = result
    interrupted = tmp_path / "interrupted.json"
    process = stopped(interrupted, signal.SIGINT, 8)
    assert process.returncode == 130
    document = json.loads(interrupted.read_text(encoding="utf-8"))
    assert 0 < sum(row["count"] for row in document["rows"] if row["task"] == "all") < len(answers(path))
    assert answers(interrupted).items() < answers(path).items()


# The command


def test_the_command_prints_a_table_and_json(result, capsys):
    path, document = result
    arguments = command(path, "--resume")[3:]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "divprune:25%" in shown and "tome:25% cannot run" in shown and "embedded: mean of 2 tasks" in shown
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == document["rows"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "readin"], "unknown task 'readin'"),
        (["--plans", "nothing:64"], "unknown method 'nothing'"),
        (["--methods", "nothing"], "methods nothing are not known"),
        (["--models", "./nowhere"], "no folder './nowhere'"),
        (["--sides", "640"], "--sides '640'"),
        (["--dtype", "int3"], "dtype 'int3'"),
        (["--tasks", "sign", "--difficulty", "2"], "--difficulty"),
    ],
)
def test_what_cannot_work_is_said_in_one_sentence(arguments, message, capsys, tmp_path):
    assert main(["bench", "accuracy", *arguments, "-o", str(tmp_path / "x.json")]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ") and message in said and "\n" not in said
    assert not list(tmp_path.iterdir())


def test_a_run_that_failed_before_its_first_answer_is_no_obstacle(tmp_path):
    path = tmp_path / "x.rows.jsonl"
    Rows(path, {"count": 3})
    rows = Rows(path, {"count": 4})
    rows.add([{"model": "m", "plan": "p", "task": "t", "index": 0, "turn": 0}])
    with pytest.raises(FoveateError, match="has answers already"):
        Rows(path, {"count": 4})
    assert Rows(path, {"count": 4}, resume=True).rows == rows.rows


def test_answers_in_memory_are_known_once():
    rows = Rows(None, {})
    row = {"model": "m", "plan": "p", "task": "t", "index": 0, "turn": 0}
    rows.add([row])
    rows.add([row, {**row, "turn": 1}])
    assert len(rows.rows) == 2
    assert rows.has("m", "p", "t", 0, 2) and not rows.has("m", "p", "t", 0, 3)
