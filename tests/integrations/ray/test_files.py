"""Files of questions, answered by replicas on a local Ray cluster: every question once, whatever dies."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

import foveate
from foveate.batch import answer_questions, read_questions
from foveate.cli import main
from foveate.core.errors import FoveateError
from foveate.integrations.ray import files
from foveate.integrations.ray.cluster import Replicas
from tests.integrations.ray.local_ray import processes, two_workers
from tests.serving.live_server import EXAMPLES, wait_until

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.xdist_group("ray-files")]

COUNT = 30


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with two_workers():
        yield


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Thirty, of which two have plans of their own, one that no model can follow, and one a broken image."""
    (tmp_path / "broken.png").write_bytes(b"no image")
    entries: list[dict[str, Any]] = [
        {"image": str(EXAMPLES / ("chart.png" if n % 2 else "receipt.png")), "question": f"What is number {n}?"}
        for n in range(COUNT)
    ]
    entries[3]["plan"] = "divprune:16"
    entries[4]["image"] = "broken.png"
    entries[6]["plan"] = "fastv:50%@99"
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(entry | {"max_new_tokens": 6}) + "\n" for entry in entries))
    return path


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def written(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
def test_a_replica_that_is_killed_loses_and_doubles_nothing(cluster: None, questions: Path) -> None:
    out = questions.with_name("answers.jsonl")
    options = ["--ray", "--replicas", "2", "--batch-size", "1", "--plan", "divprune:50%"]
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(main, ["batch", str(questions), "-o", str(out), *options])
        wait_until(lambda: written(out) >= 3 or run.done(), 240)
        victim, *others = processes("MapWorker")
        assert others
        victim.kill()
        before = written(out)
        assert 3 <= before < COUNT - 5
        assert run.result() == 0
    found = sorted(rows(out), key=lambda row: row["number"])
    model, processor = foveate.load(plan=None)
    asked = read_questions(questions)
    plan = foveate.Plan.of("divprune:50%")
    expected = [answer_questions(model, processor, [question], plan)[0] for question in asked]
    assert found == expected
    assert "not an image" in found[4]["error"] and found[3]["plan"] == "divprune:16"
    assert "layer" in found[6]["error"] and found[6]["plan"] == "fastv:50%@99" and "text" in found[7]


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on(questions: Path) -> None:
    out = questions.with_name("answers.jsonl")
    command = [sys.executable, "-m", "foveate", "batch", str(questions), "-o", str(out), "--resume"]
    command += ["--ray", "--replicas", "2", "--replica-cpus", "0.5", "--batch-size", "1"]
    run = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    wait_until(lambda: written(out) >= 3 or run.poll() is not None, 240)
    below = psutil.Process(run.pid).children(recursive=True)
    run.send_signal(signal.SIGKILL)
    run.wait()
    before = out.read_bytes().splitlines()
    assert 3 <= len(before) < COUNT and below
    wait_until(lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in below), 180)
    said = subprocess.run([*command, "--json"], capture_output=True, check=True)
    assert json.loads(said.stdout)["answered_now"] == COUNT - len(before)
    assert sorted(row["number"] for row in rows(out)) == list(range(COUNT))
    assert out.read_bytes().splitlines()[: len(before)] == before


@pytest.mark.slow
def test_a_question_that_kills_every_replica_ends_the_run(
    cluster: None, questions: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Deadly(files.BatchWorker):
        def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
            if json.loads(row["questions"])[0]["number"] == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__call__(row)

    monkeypatch.setattr(files, "Answering", Deadly)
    out = questions.with_name("answers.jsonl")
    assert main(["batch", str(questions), "-o", str(out), "--ray", "--replicas", "2", "--batch-size", "1"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "a replica failed" in said and "The answers are kept; continue with --resume." in said
    numbers = [row["number"] for row in rows(out)]
    assert 0 in numbers and 5 not in numbers and len(set(numbers)) == len(numbers)


@pytest.mark.slow
def test_a_cluster_at_an_address_answers_and_stays(cluster: None, questions: Path) -> None:
    address = ray.get_runtime_context().gcs_address
    out = questions.with_name("answers.jsonl")
    command = [sys.executable, "-m", "foveate", "batch", str(questions), "-o", str(out), "--json", "--ray"]
    said = subprocess.run([*command, "--ray-address", address], capture_output=True, check=True)
    assert json.loads(said.stdout) == {"questions": COUNT, "answered_now": COUNT, "errors": 2, "output": str(out)}
    assert sorted(row["number"] for row in rows(out)) == list(range(COUNT))
    assert ray.get(ray.put("there")) == "there"
    run = subprocess.run([*command, "--resume", "--ray-address", "127.0.0.1:1"], capture_output=True, text=True)
    assert run.returncode == 0  # nothing is missing, so nobody is asked
    out.unlink()
    run = subprocess.run([*command, "--ray-address", "127.0.0.1:1"], capture_output=True, text=True)
    assert run.returncode == 2 and "no Ray cluster answers at '127.0.0.1:1'" in json.loads(run.stdout)["error"]


def test_without_ray_the_error_names_the_extra(
    questions: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in ("cluster", "files", "pool"):  # Ray is imported only where it is asked for
        monkeypatch.delitem(sys.modules, f"foveate.integrations.ray.{name}", raising=False)
        importlib.import_module(f"foveate.integrations.ray.{name}")
    assert main(["batch", str(questions), "-o", str(questions.with_name("answers.jsonl")), "--ray"]) == 2
    assert "pip install 'foveate[ray]'" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({"count": 0}, "at least one replica"),
        ({"cpus": 0}, "more than 0 CPUs"),
        ({"cpus": float("nan")}, "more than 0 CPUs"),
        ({"gpus": -1}, "at least 0 GPUs"),
        ({"address": "ray://head:10001"}, "host:port"),
    ],
)
def test_replicas_that_cannot_be(wanted: dict[str, Any], says: str) -> None:
    with pytest.raises(FoveateError, match=says):
        Replicas(**wanted)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["batch", "QUESTIONS", "-o", "OUT", "--replicas", "2"], "need --ray"),
        (["serve", "--ray-address", "auto"], "need --ray"),
        (["serve", "--ray", "--threads", "2"], "--replica-cpus"),
        (["batch", "QUESTIONS", "-o", "OUT", "--ray", "--plan", "nosuch:3"], "unknown method"),
        (["batch", "QUESTIONS", "-o", "OUT", "--ray", "--model", "/nowhere"], "no folder"),
    ],
)
def test_options_that_cannot_be_together(
    command: list[str], says: str, questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = {"QUESTIONS": str(questions), "OUT": str(questions.with_name("answers.jsonl"))}
    assert main([paths.get(word, word) for word in command]) == 2
    assert says in " ".join(capsys.readouterr().err.split())


def test_a_plan_of_the_run_that_no_replica_can_follow(
    cluster: None, questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = questions.with_name("answers.jsonl")
    assert main(["batch", str(questions), "-o", str(out), "--ray", "--plan", "fastv:50%@99"]) == 2
    assert "layer" in " ".join(capsys.readouterr().err.split()) and not written(out)


def test_more_replicas_than_there_is_room_for(
    cluster: None, questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(questions.with_name("answers.jsonl"))
    assert main(["batch", str(questions), "-o", out, "--ray", "--replicas", "3"]) == 2
    assert "3 replicas with 1 CPU each need 3, and there are 2" in " ".join(capsys.readouterr().err.split())
