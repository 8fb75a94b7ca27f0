"""The blocks of the page of the embedded model are computed from the files that they name."""

import json
import sys
from pathlib import Path

import pytest

from foveate.statistics import wilson_interval

sys.path.insert(0, str(Path(__file__).parents[2] / "docs"))

from generator import tables


def block(name: str, root: Path) -> str:
    return tables.fill(f"<!-- generated: {name} -->\n<!-- end -->\n", root, root / "page.md")


def written(path: Path, document: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


def test_warnings_are_added_up_by_groups(tmp_path: Path) -> None:
    assert "Not measured yet" in block("embedded-warnings", tmp_path)
    rates = [("inside", "sign", 1), ("inside", "snippet", 3), ("inside", "count_shapes", 9), ("capitals", "8", 20),
             ("capitals", "10", 18), ("capitals", "11", 10), ("capitals", "12", 1), ("capitals", "20", 0)]  # fmt: skip
    document = {
        "settings": {"trained_text_height": 12}, "command": "a command", "note": "A note.",
        "rates": [{"kind": kind, "what": what, "count": 20, "warned": warned} for kind, what, warned in rates],
    }  # fmt: skip
    written(tmp_path / "benchmarks/results/domain-embedded.json", document)
    text = block("embedded-warnings", tmp_path)
    low, high = wilson_interval(4, 40)
    assert f"| of the domain, with text | 40 | **10.0 %** | {100 * low:.1f} % to {100 * high:.1f} % |" in text
    assert "| of the domain, shapes | 20 | **45.0 %** |" in text
    assert "| text with capitals of less than 10.8 px | 40 | **95.0 %** |" in text
    assert "| text with capitals of 11 px | 20 |" in text and "| text with capitals of 12 px or more | 40 |" in text
    assert "`a command`. A note." in text


def test_examples_are_counted(tmp_path: Path) -> None:
    answers = {name: {"text": "", "right": False, "tokens": 10} for name in ("full model", "plan", "random")}
    document = {"plan": "divprune:25%", "speed_up": 1.234, "right": {"full model": 4, "plan": 3, "random": 0},
                "rows": [{"answers": answers}] * 5, "command": "a command", "note": "A note."}  # fmt: skip
    written(tmp_path / "benchmarks/results/examples-embedded.json", document)
    text = block("embedded-examples", tmp_path)
    assert "| `divprune:25%` | **3** of 5 |" in text and "| random tokens | **0** of 5 |" in text
    assert "1.23 times as fast" in text


def test_the_stages_of_the_training_are_listed(tmp_path: Path) -> None:
    stages = {"read": {"steps": 3000, "cell_accuracy": 0.914}, "find": {"steps": 1019, "answer_accuracy": 0.8}}
    written(tmp_path / "src/foveate/embedded/training.json", {"samples": 225536, "seconds": 7200, "stages": stages})
    text = block("embedded-training", tmp_path)
    assert "225,536 images in 2.0 hours" in text
    assert "| `read` | 3,000 | 91% |  |" in text and "| `find` | 1,019 |  | 80% |" in text


def test_stages_are_compared_on_the_same_questions(tmp_path: Path) -> None:
    written(tmp_path / "src/foveate/embedded/training.json", {"stages": {"read": {}, "answer": {}, "full": {}}})
    assert "Not measured yet" in block("embedded-stages", tmp_path)
    for name, right, count in (("full", 75, 100), ("answer", 33, 100)):
        tasks = {"sign": {"count": count, "right": right, "accuracy": right / count}}
        path = tmp_path / f"benchmarks/results/embedded-after-{name}.json"
        written(path, {"tasks": tasks, "command": f"evaluate {name}"})
    text = block("embedded-stages", tmp_path)
    assert "| task | questions | after `answer` | after `full` |" in text
    assert "| `sign` | 100 | 33.0 % | 75.0 % |" in text and "`evaluate full`" in text
    written(path, {"tasks": {"sign": {"count": 50, "right": 1, "accuracy": 0.02}}, "command": ""})
    with pytest.raises(ValueError, match="embedded-after-answer.json answers other questions"):
        block("embedded-stages", tmp_path)
