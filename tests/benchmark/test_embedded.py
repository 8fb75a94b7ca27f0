"""What an evaluation counts, and that stopping it changes nothing."""

import json

import pytest
from PIL import Image

from foveate import FoveateError
from foveate.answering import ask
from foveate.benchmark.embedded import Pictures, Question, Score, answers, batches, evaluate, questions, summary
from foveate.training.building import export, new_model
from foveate.training.recipe import NewModel
from tests.training.small_training import IMAGES, TEXT, VISION


def row(task: str, answer: str, text: str) -> dict:
    return {"task": task, "answer": answer, "text": text, "right": answer == text}


def test_scores_and_majority():
    score = Score.of([row("a", "yes", "yes"), row("a", "no", "yes"), row("a", "yes", "no"), row("a", "yes", "yes")])
    assert (score.count, score.right, score.accuracy, score.majority) == (4, 2, 0.5, 0.75)


def test_short_readings_are_a_group_of_their_own():
    rows = [
        row("read_word", "TOTAL", "TOTAL"),
        row("read_word", "nine chars", "nine chars"),
        row("read_field", "12345678", "1234567"),
        row("count_shapes", "3", "3"),
    ]
    result = summary(rows)
    assert {task: score["count"] for task, score in result["tasks"].items()} == {
        "read_word": 2,
        "read_field": 1,
        "count_shapes": 1,
    }
    short = result["reading_1_to_8_characters"]
    assert (short["count"], short["right"]) == (2, 1)
    assert short["tasks"] == ["read_field", "read_word"]


def test_batches_hold_every_question_once_and_similar_sizes():
    stream = [Question("a", index, Image.new("RGB", (8 * (index % 5 + 1), 8)), "?", "!") for index in range(75)]
    cut = list(batches(iter(stream), 4))
    assert sorted(question.index for batch in cut for question in batch) == list(range(75))
    assert all(len(batch) <= 4 for batch in cut)
    areas = [question.image.width for batch in cut[:16] for question in batch]
    assert areas == sorted(areas)


def test_questions_are_the_same_whatever_was_done_before():
    whole = {q.index: (q.text, q.answer, q.image.tobytes()) for q in questions("read_word", 4, Pictures(), set())}
    rest = {q.index: (q.text, q.answer, q.image.tobytes()) for q in questions("read_word", 4, Pictures(), {0, 2})}
    assert set(whole) == {0, 1, 2, 3}
    assert rest == {1: whole[1], 3: whole[3]}


def test_easy_vqa_is_spread_over_the_test_split():
    easy_vqa = pytest.importorskip("easy_vqa")
    every = list(zip(*easy_vqa.get_test_questions()[:2], strict=True))
    asked = [(q.text, q.answer) for q in questions("easy_vqa", 10, Pictures(), set())]
    assert asked == [every[index * len(every) // 10] for index in range(10)]


@pytest.fixture(scope="module")
def built():
    return new_model(NewModel(VISION, TEXT, images=IMAGES), seed=0)


@pytest.fixture
def model(built):
    return built[0]


@pytest.fixture
def processor(built):
    return built[1]


@pytest.fixture
def folder(model, processor, tmp_path):
    return export(model, processor, tmp_path / "model")


def test_batched_answers_are_those_of_ask(folder, processor, tmp_path):
    rows = evaluate(str(folder), tmp_path / "rows.jsonl", ["read_word"], 3, 1, Pictures(), batch_size=3)
    for question, done in zip(
        questions("read_word", 3, Pictures(), set()), sorted(rows, key=lambda r: r["index"]), strict=True
    ):
        limit = len(processor.tokenizer(question.answer)["input_ids"]) + 4
        alone = ask(question.image, question.text, folder, max_new_tokens=limit).text
        # In a batch the longest expected answer sets the limit, so a batched text may only go on longer.
        assert done["text"].startswith(alone)
        assert done["answer"] == question.answer


def test_a_stopped_evaluation_goes_on_where_it_stood(folder, tmp_path):
    arguments = (["read_word", "count_shapes"], 4, 1, Pictures(0.5, (128, 560), 12), 2)
    whole = evaluate(str(folder), tmp_path / "whole.jsonl", *arguments)
    assert len(whole) == 8
    headed = tmp_path / "headed.jsonl"
    headed.write_text((tmp_path / "whole.jsonl").read_text(encoding="utf-8").split("\n")[0] + "\n", encoding="utf-8")
    assert len(evaluate(str(folder), headed, *arguments)) == len(evaluate(str(folder), headed, *arguments)) == 8
    fewer = evaluate(str(folder), tmp_path / "whole.jsonl", ["read_word"], 2, *arguments[2:])
    assert sorted(row["index"] for row in fewer) == [0, 1]  # others that the file has do not count

    lines = (tmp_path / "whole.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    stopped = tmp_path / "stopped.jsonl"
    stopped.write_text("".join(lines[:4]) + lines[4][:20], encoding="utf-8")  # killed while writing a row
    rest = evaluate(str(folder), stopped, *arguments)
    key = lambda r: (r["task"], r["index"])  # noqa: E731
    assert [{**r, "text": None, "right": None} for r in sorted(rest, key=key)] == [
        {**r, "text": None, "right": None} for r in sorted(whole, key=key)
    ]
    assert rest[:3] == whole[:3]
    assert len(stopped.read_text(encoding="utf-8").splitlines()) == 9
    assert all(json.loads(line) for line in stopped.read_text(encoding="utf-8").splitlines())


def test_rows_of_another_evaluation_are_not_mixed_in(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"model": "other", "difficulty": 1.0}) + "\n", encoding="utf-8")
    with pytest.raises(FoveateError, match="another evaluation"):
        evaluate("one", path, ["read_word"], 1, 1, Pictures(), 1)


def test_another_number_of_spread_questions_is_refused(tmp_path):
    pytest.importorskip("easy_vqa")
    path = tmp_path / "rows.jsonl"
    rows = [{"task": q.task, "index": q.index, "question": q.text} for q in questions("easy_vqa", 7, Pictures(), set())]
    path.write_text("\n".join(map(json.dumps, [{"model": "one", "difficulty": 1.0}, *rows])) + "\n", encoding="utf-8")
    with pytest.raises(FoveateError, match="another number of questions of easy_vqa"):
        evaluate("one", path, ["easy_vqa"], 1, 5, Pictures(), 1)


def test_unknown_tasks_are_named(tmp_path):
    with pytest.raises(FoveateError, match=r"unknown tasks read_wrod; possible are .*read_word.*easy_vqa"):
        evaluate("one", tmp_path / "rows.jsonl", ["read_wrod"], 1, 1, Pictures(), 1)


def test_answers_are_stripped_text(model, processor):
    image = Image.new("RGB", (64, 32), "white")
    (text,) = answers(model, processor, [Question("a", 0, image, "What?", "four")])
    assert text == text.strip()
    assert "<|im_end|>" not in text
