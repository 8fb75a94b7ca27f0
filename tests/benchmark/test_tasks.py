"""What is asked is the same every time, and asks for what it should."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from foveate import FoveateError
from foveate.benchmark import tasks
from foveate.benchmark.tasks import (
    CHAT,
    CHAT_PAGES,
    DETAIL,
    DETAIL_PAGES,
    GROUPS,
    SWAPPED,
    Item,
    check,
    items,
    names,
    tasks_of,
)
from foveate.synthetic import TASKS, render, smallest_size
from foveate.synthetic.clips import CLIP_TASKS

EASY = {"difficulty": 0.3, "sides": (128, 256)}


def same(a: Item, b: Item) -> bool:
    return (a.task, a.index, a.turns) == (b.task, b.index, b.turns) and a.images == b.images


@pytest.mark.parametrize("task", ["read_word", CHAT])
def test_items_are_a_function_of_task_and_number(task):
    first = list(items(task, 5, **EASY))
    assert [item.index for item in first] == [0, 1, 2, 3, 4]
    assert all(same(a, b) for a, b in zip(first, items(task, 5, **EASY), strict=True))
    assert all(same(a, b) for a, b in zip(first[3:], items(task, 2, first=3, **EASY), strict=True))
    assert len({item.turns for item in first}) == 5


def test_pages_are_those_of_the_held_out_split():
    (item,) = items("table_cell", 1, first=7, difficulty=1.0, sides=(128, 640))
    sample = render("table_cell", 7, split="heldout", sides=(128, 640), difficulty=1.0)
    assert (item.images, item.turns) == ((sample.image,), ((sample.question, sample.answer),))


def test_chats_ask_one_image_several_different_things():
    found = list(items(CHAT, 12, difficulty=0.6, sides=(128, 400)))
    for item in found:
        questions, answers = zip(*item.turns, strict=True)
        assert len(item.images) == 1 and 2 <= len(item.turns) <= 3
        assert len(set(questions)) == len({answer.lower() for answer in answers}) == len(item.turns)


def test_chats_in_the_other_order_begin_with_the_second_question():
    for one, other in zip(items(CHAT, 6, **EASY), items(SWAPPED, 6, **EASY), strict=True):
        assert (other.task, other.index) == (SWAPPED, one.index)
        assert other.turns == (one.turns[1], one.turns[0])
        assert other.images[0].tobytes() == one.images[0].tobytes()


@pytest.mark.parametrize("page", ["shape_colour", "shape_kind"])
def test_later_questions_about_shapes_are_right_and_about_other_shapes(page):
    place = CHAT_PAGES.index(page)
    for number in range(4):
        (item,) = items(CHAT, 1, first=place + number * len(CHAT_PAGES), **EASY)
        seeds = range(1000 * (item.index + 1), 1000 * (item.index + 1) + 400)
        samples = (render(page, seed, split="heldout", sides=EASY["sides"], difficulty=0.3) for seed in seeds)
        sample = next(s for s in samples if s.image == item.images[0])
        shapes = [shape.split(" ", 1) for shape in sample.meta["shapes"]]
        asked, told = (1, 0) if page == "shape_colour" else (0, 1)
        for question, answer in item.turns:
            (shape,) = [shape for shape in shapes if shape[asked] in re.findall("[a-z]+", question.lower())]
            assert shape[told] == answer


def test_details_are_small_on_large_pages():
    found = list(items(DETAIL, len(DETAIL_PAGES), difficulty=1.0, sides=(128, 640)))
    assert all(max(item.images[0].size) >= 512 for item in found)
    for item in found:
        page = DETAIL_PAGES[item.index]
        seeds = range(1000 * (item.index + 1), 1000 * (item.index + 2))
        samples = (render(page, seed, split="heldout", sides=(512, 640), difficulty=1.0) for seed in seeds)
        sample = next(s for s in samples if s.question == item.turns[0][0])
        assert sample.meta["cap"] <= 640 / 50
        assert item.turns == ((sample.question, sample.answer),)


def test_names_groups_and_all():
    assert tasks_of(["sign", "tables", "sign"]) == ("sign", "table_cell", "table_row")
    assert tasks_of(["all"]) == names()
    assert {task for group in GROUPS.values() for task in group} <= {*TASKS, *CLIP_TASKS}
    assert [tasks.group_of(task) for task in ("sign", "count_shapes", CHAT)] == ["reading", "counting", None]
    with pytest.raises(
        FoveateError, match=r"unknown task 'readin'; possible are all, reading, .*chat, chat_swapped, detail"
    ):
        tasks_of(["readin"])


def test_easy_vqa_is_spread_over_its_test_split():
    pytest.importorskip("easy_vqa")
    from foveate.synthetic import easy_vqa

    every = [(question, answer) for _, question, answer in easy_vqa("test")]
    found = list(items("easy_vqa", 10))
    assert [item.turns[0] for item in found] == [every[index * len(every) // 10] for index in range(10)]


@pytest.mark.parametrize(
    ("asked", "sides", "difficulty", "message"),
    [
        ((), (128, 640), 1.5, "difficulty"),
        ((), (640, 128), 1.0, "sides"),
        ((), (128, 4096), 1.0, "sides"),
        ((DETAIL,), (128, 300), 1.0, "detail needs"),
        (("receipt_total",), (64, 100), 1.0, "receipt_total needs a side of at least 144"),
        ((CHAT,), (64, 100), 1.0, "needs a side"),
    ],
)
def test_pages_that_cannot_be_drawn(asked, sides, difficulty, message):
    with pytest.raises(FoveateError, match=message):
        check(asked, sides, difficulty)


@pytest.mark.parametrize("difficulty", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("task", [*TASKS, CHAT, DETAIL])
def test_every_task_can_be_asked_at_its_least_size(task, difficulty):
    """What is accepted before the first question can be drawn to the last."""
    pages = {CHAT: CHAT_PAGES, DETAIL: DETAIL_PAGES}.get(task, (task,))
    least = tasks.least_side(difficulty) if task == DETAIL else max(max(smallest_size(page)) for page in pages)
    for sides in ((16, least), (least, least)):
        check((task,), sides, difficulty)
        assert len(list(items(task, len(pages), difficulty=difficulty, sides=sides))) == len(pages)
    with pytest.raises(FoveateError, match="needs"):
        check((task,), (16, least - 1), difficulty)


# Files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (40, 30), colour).save(tmp_path / name)
    return tmp_path


def write(folder: Path, entries: list[dict]) -> str:
    path = folder / "own.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return str(path)


def entry(*values: str, image: str | list[str] | None = "a.png") -> dict:
    who = ("human", "gpt")
    turns = [{"from": who[n % 2], "value": value} for n, value in enumerate(values)]
    return {"conversations": turns} | ({} if image is None else {"image": image})


def test_a_file_of_conversations(folder):
    path = write(
        folder,
        [
            entry("<image>\nOne?", " 1 ", "Two?", "2"),
            entry("Text alone?", "yes", image=None),
            {**entry("<image> and <image>: same?", "no", image=["a.png", "b.png"]), "id": "x"},
        ],
    )
    assert tasks_of([path, "sign"]) == (path, "sign")
    first, second = items(path, 10)
    assert first.turns == (("One?", "1"), ("Two?", "2")) and first.images[0].size == (40, 30)
    assert second.turns[0][1] == "no" and len(second.images) == 2
    assert [image.getpixel((0, 0)) for image in second.images] == [(255, 0, 0), (0, 0, 255)]
    assert [item.turns[0][0] for item in items(path, 1)] == ["One?"]


def test_a_system_turn_is_kept(folder):
    conversation = entry("<image>\nOne?", "1")
    conversation["conversations"].insert(0, {"from": "system", "value": "Be short."})
    (item,) = items(write(folder, [conversation]), 1)
    assert item.system == "Be short." and item.turns == (("One?", "1"),)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([entry("Text alone?", "yes", image=None)], "no conversation with an image"),
        ([entry("First?", "1", "<image>\nNow?", "2")], "after its first question"),
        ([entry("<image>\nOne?", "1", image="missing.png")], "does not exist"),
    ],
)
def test_files_that_cannot_be_asked(folder, entries, message):
    with pytest.raises(FoveateError, match=message):
        tasks_of([write(folder, entries)])
