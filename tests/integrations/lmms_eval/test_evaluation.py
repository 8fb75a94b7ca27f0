"""The evaluator of `foveate bench released`, and whole runs of the command on tasks of local files."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from foveate.benchmark.matching import matches
from foveate.benchmark.released import ReleasedSettings, read_leaderboard
from foveate.benchmark.tasks import Item, items
from foveate.core.errors import FoveateError
from foveate.integrations.lmms_eval.evaluation import LmmsEvaluator, question_scores
from foveate.integrations.lmms_eval.model import EvaluatedModel, GenerationSettings
from foveate.report import read
from tests.integrations.lmms_eval.test_model import EXAMPLE, asked, needs_lmms_eval
from tests.tiny_model import noise, save_llava_uhd

METRICS = {
    "chartqa": ("relaxed_overall", "relaxed_human_split", "relaxed_augmented_split"),
    "mme": ("mme_perception_score", "mme_cognition_score"),
    "pope": ("pope_accuracy", "pope_precision"),
}


def of(task: str, *samples: dict[str, Any]) -> tuple[str, tuple[float, ...]]:
    return question_scores(task, samples, [{"metric": name, "higher_is_better": True} for name in METRICS[task]])


def test_the_score_of_a_question_is_its_first_metric() -> None:
    samples = [{"relaxed_overall": 1.0, "relaxed_human_split": 1.0}, {"relaxed_overall": False, "doc_id": 1}]
    assert of("chartqa", *samples) == ("relaxed_overall", (1.0, 0.0))
    points = [{"mme_cognition_score": {"score": 1.0, "category": "a"}}, {"mme_perception_score": {"score": 0.0}}]
    assert of("mme", *points) == ("mme_perception_score, mme_cognition_score", (1.0, 0.0))
    assert of("pope", {"pope_accuracy": {"score": 1}, "pope_precision": {"score": 0}}) == ("pope_accuracy", (1.0,))
    worse = [{"metric": "wer", "higher_is_better": False}, {"metric": "hits"}]
    assert question_scores("speech", [{"wer": 0.1, "hits": 0.9}], worse) == ("hits", (0.9,))


@pytest.mark.parametrize("value", [None, "1", 1500.0, -1, float("nan"), {"prediction": 1}])
def test_a_task_without_a_score_per_question_is_refused(value: Any) -> None:
    with pytest.raises(FoveateError, match=r"'pope' has no score between 0 and 1 .*pope_accuracy, pope_precision"):
        of("pope", {"pope_accuracy": 1}, {"pope_accuracy": value})


def test_plans_are_exchanged_on_one_model(tmp_path: Path) -> None:
    folder = str(save_llava_uhd(tmp_path))
    questions = [asked(noise(64, 64, seed), "What?") for seed in range(3)]
    wanted = [GenerationSettings(8)] * 3
    shared = EvaluatedModel(folder, "full model", device="cpu")
    before = dict(shared.model.state_dict())
    for plan in ("divprune:50%", "full model", "fastv:50%@1", "random:25%"):
        shared.attach(plan)
        alone = EvaluatedModel(folder, plan, device="cpu")
        assert shared.plan == alone.plan == plan
        assert shared.answers(questions, wanted) == alone.answers(questions, wanted)
        assert shared.token_counts == alone.token_counts and len(shared.token_counts) == 3
        assert all(kept == before if plan == "full model" else kept < before for before, kept in shared.token_counts)
    with pytest.raises(FoveateError, match="unknown method"):
        shared.attach("nonsense:3")
    shared.attach("full model")
    assert shared.model.state_dict().keys() == before.keys()


# Whole runs

TASKS = {"words": "read_word", "totals": "receipt_total"}
PLANS = ("full model", "random:50%", "downsample:50%", "divprune:50%")
COUNT = 6


@pytest.fixture(scope="module")
def pages() -> dict[str, list[Item]]:
    return {name: list(items(task, COUNT, difficulty=0.2, sides=(128, 256))) for name, task in TASKS.items()}


#: In a task whose images are inside of its data, as those on the Hub are.
INSIDE = """

def inside(doc):
    return [doc["image"].convert("RGB")]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, pages: dict[str, list[Item]]) -> Path:
    """A folder with tasks, as --include-path takes it; images of "words" are files, those of "totals" are data."""
    from datasets import Dataset, Image  # ty: ignore[unresolved-import]

    folder = tmp_path_factory.mktemp("tasks")
    (folder / "pictures.py").write_text((EXAMPLE / "pictures.py").read_text(encoding="utf-8") + INSIDE)
    yaml = (EXAMPLE / "examples.yaml").read_text(encoding="utf-8")
    for name, questions in pages.items():
        lines = []
        for number, item in enumerate(questions):
            ((question, answer),) = item.turns
            path = folder / f"{name}-{number}.png"
            item.images[0].save(path)
            lines.append(json.dumps({"question": question, "answer": answer, "images": [str(path)]}) + "\n")
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        text = yaml.replace("examples/lmms-eval/questions.jsonl", str(folder / f"{name}.jsonl"))
        (folder / f"{name}.yaml").write_text(text.replace("task: foveate_examples", f"task: {name}"), encoding="utf-8")
    rows = [
        {"question": item.turns[0][0], "answer": item.turns[0][1], "image": str(folder / f"totals-{number}.png")}
        for number, item in enumerate(pages["totals"])
    ]
    Dataset.from_list(rows).cast_column("image", Image()).to_parquet(folder / "totals.parquet")
    text = (folder / "totals.yaml").read_text(encoding="utf-8").replace("totals.jsonl", "totals.parquet")
    text = text.replace("dataset_path: json", "dataset_path: parquet").replace("pictures.of", "pictures.inside")
    (folder / "totals.yaml").write_text(text, encoding="utf-8")
    choices = yaml.replace("task: foveate_examples", "task: choices").replace("generate_until", "multiple_choice")
    (folder / "choices.yaml").write_text(choices, encoding="utf-8")
    return folder


def started(folder: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    """The command on the embedded model, running."""
    line = ["bench", "released", "--model", "embedded", "--plans", "divprune:50%", "--tasks", "totals,words"]
    line += ["--include-path", str(folder), "--device", "cpu", "--batch-size", "4", "--repeats", "1", "-o", str(out)]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    return subprocess.Popen(
        [sys.executable, "-m", "foveate", *line, *more],
        env=os.environ | offline,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def written(out: Path) -> list[Path]:
    return sorted(path for path in out.rglob("*") if path.is_file())


@pytest.mark.slow
@needs_lmms_eval
def test_a_run_is_interrupted_and_continued(folder: Path, pages: dict[str, list[Item]], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with started(folder, out) as process:
        while process.poll() is None and not written(out):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        printed = "".join(process.communicate())
    assert process.returncode == 130, printed
    complete = {path: path.read_bytes() for path in written(out)}
    assert 1 <= len(complete) < len(PLANS) * len(TASKS)
    assert all(path.parent.name == "evaluations" and json.loads(text)["evaluation"] for path, text in complete.items())

    with started(folder, out) as process:
        printed = "".join(process.communicate())
    assert process.returncode == 0, printed
    assert all(path.read_bytes() == text for path, text in complete.items())
    assert len(re.findall(r"\(\d+ of 8\)", printed)) >= 8 - len(complete)

    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    rows = {(row["plan"], row["task"]): row for row in result["rows"]}
    assert set(rows) == {(plan, task) for plan in PLANS for task in (*TASKS, "all")} and not result["impossible"]
    for path in (out / "evaluations").iterdir():
        document = json.loads(path.read_text(encoding="utf-8"))
        evaluation, questions = document["evaluation"], pages[document["task"]]
        expected = [
            float(matches(answer, item.turns[0][1]))
            for answer, item in zip(evaluation["answers"], questions, strict=True)
        ]
        row = rows[document["plan"], document["task"]]
        assert evaluation["scores"] == expected
        assert row["accuracy"] == pytest.approx(sum(expected) / COUNT, abs=1e-4)
        assert row["metrics"] == {"exact_match": pytest.approx(sum(expected) / COUNT)}
        assert row["tokens_in"] == pytest.approx(rows["full model", document["task"]]["tokens_kept"])
    assert sum(rows["full model", "all"]["accuracy"] > rows[plan, "all"]["accuracy"] for plan in PLANS[1:3])
    for plan in ("random:50%", "divprune:50%"):
        assert rows[plan, "all"]["tokens_kept"] == pytest.approx(rows[plan, "all"]["tokens_in"] / 2, rel=0.05)

    assert {row["plan"] for row in result["speed"]["rows"]} == set(PLANS)
    results = read([out / "result.json"])
    assert len(results.accuracy) == 12 and len(results.speed) == 4
    page = (out / "report" / "index.html").read_text(encoding="utf-8")
    assert "divprune:50%" in page and "Plans on embedded" in page
    leaderboard = read_leaderboard(out / "embedded.jsonl")
    assert len(leaderboard) == 8 and all(row.complete and row.versions["lmms-eval"] for row in leaderboard)


@pytest.mark.slow
@needs_lmms_eval
def test_what_cannot_be_asked_is_refused_before_the_model_is_loaded(folder: Path, tmp_path: Path) -> None:
    settings = ReleasedSettings(model="embedded", plans=("divprune:50%",), device="cpu")
    with pytest.raises(FoveateError, match="is no folder"):
        LmmsEvaluator(settings, folder / "nowhere")
    evaluator = LmmsEvaluator(settings, folder)
    evaluator.check([*settings.tasks, *TASKS])
    for task, said in (
        ("word", "lmms-eval has no task 'word'; did you mean words"),
        ("textvqa", "'textvqa' is a group of tasks"),
        ("choices", r"'choices' scores answers that it brings along \(multiple_choice\)"),
    ):
        with pytest.raises(FoveateError, match=said):
            evaluator.check(["words", task])
    with started(folder, tmp_path / "out", "--plans", "tome:25%") as process:
        printed, errors = process.communicate()
    assert process.returncode == 2 and not printed and not (tmp_path / "out").exists()
    assert re.search(r"^error: tome merges inside the encoder.*\.$", errors, re.MULTILINE), errors
