"""Files of questions: every question answered once, whatever happens on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import foveate
from foveate.batch import Output, answer_file, answer_questions, batches, read_questions
from foveate.cli import main
from foveate.core.errors import FoveateError
from foveate.core.plan import Plan
from tests.full_disk import room
from tests.tiny_model import noise, save_qwen
from tests.video_files import save_clip, save_sound

EXAMPLES = Path(__file__).parents[1] / "examples"


def written(path: Path, *entries: Any) -> Path:
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in entries))
    return path


def asked(image: str, question: str, **more: Any) -> dict[str, Any]:
    return {"image": str(EXAMPLES / image), "question": question, **more}


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return written(
        tmp_path / "questions.jsonl",
        asked("receipt.png", "What is the total?", id="total"),
        asked("chart.png", "Which month has the highest bar?", max_new_tokens=4),
        "",
        asked("receipt.png", "What is the total?", plan="divprune:64"),
        {"images": [str(EXAMPLES / "receipt.png"), str(EXAMPLES / "chart.png")], "question": "Which?"},
        {"question": "Hello?", "id": 77},
    )


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers_are_those_of_ask(questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "answers.jsonl"
    assert main(["batch", str(questions), "-o", str(out), "--max-new-tokens", "12", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {"questions": 5, "answered_now": 5, "errors": 0, "output": str(out)}
    found = rows(out)
    assert [row["id"] for row in found] == ["total", 1, 2, 3, 77]
    assert [row["plan"] for row in found] == [None, None, "divprune:64", None, None]
    for row, plan in ((found[0], None), (found[2], "divprune:64")):
        expected = foveate.ask(EXAMPLES / "receipt.png", "What is the total?", plan=plan, max_new_tokens=12)
        assert row["text"] == expected.text
    assert main(["batch", str(questions), "-o", str(out)]) == 2
    assert "--resume" in capsys.readouterr().err
    assert main(["batch", str(questions), "-o", str(out), "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["answered_now"] == 0 and rows(out) == found


def test_questions_about_clips(tmp_path: Path) -> None:
    """With the frames that the plan chooses; images of other questions ignore that step."""
    pytest.importorskip("av")
    model, processor = foveate.load(save_qwen(tmp_path / "qwen"))
    clip = save_clip(tmp_path / "a.mkv", 16, 4)
    save_sound(tmp_path / "sound.mp4")
    noise(32, 16).save(tmp_path / "b.png")
    plan = "uniform-frames:4 + random:50%"
    lines = [
        {"video": "a.mkv", "question": "What happens?"},
        {"video": "a.mkv", "question": "What happens?", "plan": "uniform-frames:2"},
        {"image": "b.png", "question": "What is it?"},
        {"video": "a.mkv", "image": "b.png", "question": "Both?"},
        {"video": "sound.mp4", "question": "?"},
    ]
    questions = read_questions(written(tmp_path / "q.jsonl", *lines))
    out = tmp_path / "out.jsonl"
    with Output(out, questions, resume=False) as output:
        answer_file(model, processor, questions, output, plan=Plan.of(plan), max_new_tokens=4)
    found = rows(out)
    assert [row["plan"] for row in found] == [plan, "uniform-frames:2", plan, plan, plan]
    pair = (model, processor)
    assert found[0]["text"] == foveate.ask(clip, "What happens?", pair, plan, max_new_tokens=4).text
    assert found[1]["text"] == foveate.ask(clip, "What happens?", pair, "uniform-frames:2", max_new_tokens=4).text
    image = tmp_path / "b.png"
    assert found[2]["text"] == foveate.ask(image, "What is it?", pair, "random:50%", max_new_tokens=4).text
    assert found[3]["text"] and "has no video" in found[4]["error"]


def test_what_cannot_be_answered_is_a_row_with_its_error(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    path = written(
        tmp_path / "q.jsonl",
        {"image": "broken.png", "question": "What?"},
        asked("chart.png", "a" * 5_000),
        asked("chart.png", "What is it?", max_new_tokens=2),
    )
    model, processor = foveate.load(plan=None)
    broken, long, good = answer_questions(model, processor, read_questions(path))
    assert "not an image" in broken["error"] and "positions" in long["error"]
    assert good["text"] and "error" not in good


def test_what_a_processor_refuses_is_a_row_with_its_error_and_the_run_goes_on(tmp_path: Path) -> None:
    model, processor = foveate.load(save_qwen(tmp_path / "qwen"))
    noise(300, 1).save(tmp_path / "line.png")
    noise(32, 16).save(tmp_path / "b.png")
    entries = [{"image": name, "question": "What?", "max_new_tokens": 2} for name in ("b.png", "line.png", "b.png")]
    out, questions = tmp_path / "out.jsonl", read_questions(written(tmp_path / "q.jsonl", *entries))
    with Output(out, questions, resume=False) as output:
        answer_file(model, processor, questions, output)
    first, line, last = rows(out)
    assert "aspect ratio" in line["error"] and line["error"].startswith("the processor of this model refuses")
    assert first["text"] == last["text"]


def test_a_plan_that_cannot_be_followed_is_a_row_with_its_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = asked("receipt.png", "What is the total?", max_new_tokens=6)
    impossible = ("fastv:50%@99", "focusui(weights='/nowhere'):64", "tome:50%")
    path = written(tmp_path / "q.jsonl", good, *({**good, "plan": plan} for plan in impossible), good)
    out = tmp_path / "answers.jsonl"
    for more in ([], ["--resume"]):
        assert main(["batch", str(path), "-o", str(out), "--json", *more]) == 0
        assert json.loads(capsys.readouterr().out)["errors"] == 3
        first, *failed, last = rows(out)
        assert first["text"] == last["text"] and [row["number"] for row in failed] == [1, 2, 3]
        for row, plan, says in zip(failed, impossible, ("layer", "/nowhere", "tome"), strict=True):
            assert says in row["error"] and row["plan"].startswith(plan[:4]) and "text" not in row


def test_a_plan_of_the_run_that_cannot_be_followed_ends_it_before_anything_is_answered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = asked("receipt.png", "What is the total?", max_new_tokens=6)
    out = tmp_path / "answers.jsonl"
    path = written(tmp_path / "q.jsonl", {**good, "plan": "divprune:16"}, good)
    assert main(["batch", str(path), "-o", str(out), "--plan", "fastv:50%@99"]) == 2
    assert "layer" in capsys.readouterr().err and not rows(out)
    model, processor = foveate.load(plan=None)
    questions = read_questions(path)
    with Output(out, questions, resume=True) as output, pytest.raises(FoveateError, match="layer"):
        answer_file(model, processor, questions, output, plan=foveate.Plan.of("fastv:50%@99"))
    assert not rows(out)


def test_null_is_as_if_left_out(tmp_path: Path) -> None:
    names = ("id", "images", "plan", "max_new_tokens")
    entries = [asked("chart.png", "What?"), {**asked("chart.png", "What?"), **dict.fromkeys(names)}]
    first, second = read_questions(written(tmp_path / "q.jsonl", *entries))
    assert (first.images, first.plan, first.max_new_tokens) == (second.images, second.plan, second.max_new_tokens)
    (alone,) = read_questions(written(tmp_path / "alone.jsonl", {"image": None, "question": "Hello?"}))
    assert alone.images == ()


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("{", "line 2: no JSON"),
        ("[1]", "line 2: a question is an object"),
        ("[" * 100_000, "line 2"),
        ("\x00", "line 2"),
        ('{"question": "\\ud800"}', "half of a character"),
        ({"image": "a.png"}, "'question' must be"),
        ({"image": "missing.png", "question": "?"}, "no image"),
        ({"image": 3, "question": "?"}, "must be a path"),
        ({"video": ["a.mp4"], "question": "?"}, "'video' must be a path"),
        ({"video": "missing.mp4", "question": "?"}, "there is no video"),
        (asked("chart.png", " "), "'question' must be"),
        (asked("chart.png", "?", plan="nosuch:3"), "unknown method"),
        (asked("chart.png", "?", colour=1), "'colour'"),
        (asked("chart.png", "?", max_new_tokens=0), "a positive integer"),
        (asked("chart.png", "?", id="first"), "line 1 already"),
        (asked("chart.png", "?", images=[]), "cannot be combined"),
        ({"image": "a" * 5000, "question": "?"}, "no image"),
        ({"image": "a\0b", "question": "?"}, "no image"),
        ('{"question": "?", "id": ' + "9" * 5000 + "}", "5000 digits"),
        ('{"question": "?", "max_new_tokens": NaN}', "a positive integer"),
    ],
)
def test_bad_lines_are_named_before_anything_is_answered(tmp_path: Path, entry: Any, says: str) -> None:
    path = written(tmp_path / "q.jsonl", asked("chart.png", "What?", id="first"), entry)
    with pytest.raises(FoveateError, match=says):
        read_questions(path)


def test_only_line_feeds_end_a_line(tmp_path: Path) -> None:
    text = "one\u2028two\x85three\x0bfour"  # `str.splitlines` would end lines at each of these
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"question": text}, ensure_ascii=False) + "\r\n")
    assert [question.question for question in read_questions(path)] == [text]
    with pytest.raises(FoveateError, match="is not a file"):
        read_questions(Path("/dev/zero"))


def test_batches_hold_one_plan(questions: Path) -> None:
    found = [[question.number for question in batch] for batch in batches(read_questions(questions), 2)]
    assert found == [[0, 1], [2], [3, 4]]


def test_outputs_hold_whole_lines_of_these_questions(questions: Path, tmp_path: Path) -> None:
    asked_now = read_questions(questions)
    path = tmp_path / "answers.jsonl"
    row = {**asked_now[0].shown, "plan": None, "text": "34.55"}
    with Output(path, asked_now, resume=False) as output:
        output.add([row])
        with pytest.raises(FoveateError, match="another run"):
            Output(path, asked_now, resume=True)
    with path.open("a") as file:
        file.write('{"number": 1, "id"')  # a kill in the middle of a line
    with Output(path, asked_now, resume=True) as output:
        assert output.done == {0}
        output.add([{**asked_now[1].shown, "plan": None, "error": "x"}])
    assert len(rows(path)) == 2
    with path.open("ab") as file:
        file.write(bytes(100))  # what some file systems leave of a line where the machine stopped
    with Output(path, asked_now, resume=True) as output:
        assert output.done == {0, 1}
    assert len(rows(path)) == 2
    for other in ("notes without an end of line", '{"image": "a.png"', json.dumps(row) + "\n# a note"):
        notes = tmp_path / "notes.txt"
        notes.write_text(other)
        with pytest.raises(FoveateError, match="the last line"):
            Output(notes, asked_now, resume=True)
        assert notes.read_text() == other
    with pytest.raises(FoveateError, match="is not a file"):
        Output(Path("/dev/full"), asked_now, resume=True)
    for wrong in ({**row, "question": "other"}, row, {**row, "number": 99}, {"number": 0}):
        broken = written(tmp_path / "broken.jsonl", row, wrong)
        with pytest.raises(FoveateError, match="line 2"):
            Output(broken, asked_now, resume=True)


def test_a_full_disk_loses_nothing(questions: Path, tmp_path: Path) -> None:
    asked_now = read_questions(questions)
    path = tmp_path / "answers.jsonl"
    with Output(path, asked_now, resume=False) as output:
        output.add([asked_now[0].shown])
        whole = path.read_bytes()
        with room(len(whole) + 20), pytest.raises(FoveateError, match="could not be written"):  # for half a line
            output.add([asked_now[1].shown])
        assert path.read_bytes() == whole and output.done == {0}
        output.add([asked_now[1].shown])
    assert [row["number"] for row in rows(path)] == [0, 1]


@pytest.mark.slow
def test_a_kill_loses_and_doubles_nothing(tmp_path: Path) -> None:
    path = written(
        tmp_path / "q.jsonl", *[asked("chart.png", f"What is number {n}?", max_new_tokens=6) for n in range(24)]
    )
    out = tmp_path / "answers.jsonl"
    command = [sys.executable, "-m", "foveate", "batch", str(path), "-o", str(out), "--resume", "--batch-size", "1"]
    run = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    late = time.monotonic() + 120
    while not out.exists() or len(out.read_bytes().splitlines()) < 3:
        assert run.poll() is None and time.monotonic() < late
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    run.wait()
    before = out.read_bytes().splitlines()
    assert 3 <= len(before) < 24
    assert subprocess.run([*command, "--json"], capture_output=True, check=True).returncode == 0
    found = rows(out)
    assert sorted(row["number"] for row in found) == list(range(24))
    assert out.read_bytes().splitlines()[: len(before) - 1] == before[:-1]
