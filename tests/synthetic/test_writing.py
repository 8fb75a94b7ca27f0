"""A split on disk: LLaVA's format, whole files only, the same after an interruption."""

import json

import pytest
from PIL import Image

from foveate.core.errors import FoveateError
from foveate.synthetic import render, write_split, writing
from foveate.training.dataset import read_conversations

TASKS = ("read_word", "shape_kind")


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_lines_are_those_of_llava(tmp_path):
    path = write_split(tmp_path, "heldout", 3, seed=5, tasks=TASKS, difficulty=0)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["task"] for line in lines] == ["read_word"] * 3 + ["shape_kind"] * 3
    sample = render("read_word", 6, "heldout", difficulty=0)
    assert lines[1]["conversations"] == [
        {"from": "human", "value": f"<image>\n{sample.question}"},
        {"from": "gpt", "value": sample.answer},
    ]
    with Image.open(tmp_path / lines[1]["image"]) as image:
        assert image.convert("RGB").tobytes() == sample.image.tobytes()
    assert len(read_conversations(path, tmp_path)) == 6


def test_interrupted_and_resumed_is_the_same(tmp_path, monkeypatch):
    whole = tmp_path / "whole"
    write_split(whole, "train", 4, tasks=TASKS, difficulty=0)
    broken = tmp_path / "broken"
    drawn = []

    def stops(task, seed, *arguments, **more):
        drawn.append((task, seed))
        if (task, seed) == ("shape_kind", 2):
            raise KeyboardInterrupt
        return render(task, seed, *arguments, **more)

    monkeypatch.setattr(writing, "render", stops)
    with pytest.raises(KeyboardInterrupt):
        write_split(broken, "train", 4, tasks=TASKS, difficulty=0)
    assert not (broken / "train.jsonl").exists()
    assert not [path for path in broken.rglob(".*") if path.is_file()]
    monkeypatch.setattr(writing, "render", lambda *a, **k: drawn.append(a[:2]) or render(*a, **k))
    drawn.clear()
    write_split(broken, "train", 4, tasks=TASKS, difficulty=0)
    assert {task for task, _ in drawn} == {"shape_kind"}  # the finished task is not drawn again
    assert content(broken) == content(whole)


def test_other_settings_are_refused(tmp_path):
    write_split(tmp_path, "train", 1, tasks=TASKS, difficulty=0)
    with pytest.raises(FoveateError, match=r"other settings \(seed\)"):
        write_split(tmp_path, "train", 1, seed=1, tasks=TASKS, difficulty=0)
    with pytest.raises(FoveateError, match="unknown task"):
        write_split(tmp_path / "new", "train", 1, tasks=["nothing"])
    with pytest.raises(FoveateError, match="count_per_task"):
        write_split(tmp_path / "new", "train", 0)
