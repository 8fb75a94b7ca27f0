"""Exact-match evaluation on the held-out split of rendered images and on the test split of easy-VQA.

    python -m foveate.benchmark.embedded MODEL -o evaluation.json

An answer counts when it equals the expected one character for character, after white space at both ends is removed.
Every task is reported with the 95 % Wilson interval of its accuracy and with the accuracy of always giving the most
frequent answer. Rows are written as they come, and an evaluation that was stopped goes on where it stood.
"""

from __future__ import annotations

import json
import platform
import shlex
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from PIL import Image

import foveate
from foveate.answering import answer_batch
from foveate.console import notes
from foveate.core.errors import FoveateError
from foveate.core.files import write_json
from foveate.core.text_files import read_text
from foveate.loading import load
from foveate.statistics import wilson_interval

EASY_VQA = "easy_vqa"
#: Answers of this length, in characters, count as "words and numbers of 1 to 8 characters".
SHORT = range(1, 9)
#: Tasks whose answer appears in the image as text.
READING = (
    "read_word",
    "read_line",
    "read_field",
    "sign",
    "table_cell",
    "receipt_date",
    "receipt_total",
    "receipt_detail",
)


@dataclass(frozen=True)
class Question:
    """A question of the evaluation; `index` is its number within the task."""

    task: str
    index: int
    image: Image.Image
    text: str
    answer: str


@dataclass(frozen=True)
class Score:
    """Accuracy of a group of questions.

    Args:
        count: Questions.
        right: Answers that match exactly.
        accuracy: right / count.
        low: Lower end of the 95 % Wilson interval.
        high: Upper end.
        majority: Accuracy of always giving the most frequent answer of the group.
    """

    count: int
    right: int
    accuracy: float
    low: float
    high: float
    majority: float

    @classmethod
    def of(cls, rows: Sequence[dict[str, Any]]) -> Score:
        """Compute the score of rows with `answer` and `right`."""
        count, right = len(rows), sum(row["right"] for row in rows)
        low, high = wilson_interval(right, count)
        majority = max(Counter(row["answer"] for row in rows).values()) / count
        return cls(count, right, *(round(x, 4) for x in (right / count, low, high, majority)))


@dataclass(frozen=True)
class Pictures:
    """Settings of the rendered images.

    Args:
        difficulty: Difficulty of all of them.
        sides: Shortest and longest side in pixels.
        least: Smallest height of capitals in pixels, None where the difficulty decides.
    """

    difficulty: float = 1.0
    sides: tuple[int, int] = (128, 640)
    least: float | None = None

    def settings(self) -> dict[str, Any]:
        """Settings as recorded in rows and results; defaults are omitted."""
        usual = Pictures()
        values: dict[str, Any] = {"difficulty": self.difficulty}
        if self.sides != usual.sides:
            values["sides"] = list(self.sides)
        if self.least is not None:
            values["least"] = self.least
        return values


def questions(task: str, count: int, pictures: Pictures, skip: set[int]) -> Iterator[Question]:
    """Return the first `count` questions of a task, except those whose index is in `skip`.

    Rendered tasks are drawn from the held-out split; easy-VQA's are spread evenly over its test split.
    """
    from foveate.synthetic import render

    if task == EASY_VQA:
        yield from (question for question in _easy_questions(count) if question.index not in skip)
        return
    for index in range(count):
        if index not in skip:
            sample = render(
                task,
                index,
                split="heldout",
                sides=pictures.sides,
                difficulty=pictures.difficulty,
                least=pictures.least,
            )
            yield Question(task, index, sample.image, sample.question, sample.answer)


def _easy_questions(count: int) -> Iterator[Question]:
    """Questions of easy-VQA, spread evenly over its test split."""
    from foveate.synthetic import easy_vqa

    everything = list(easy_vqa("test"))
    count = min(count, len(everything))
    for index in range(count):
        yield Question(EASY_VQA, index, *everything[index * len(everything) // count])


def batches(stream: Iterator[Question], size: int) -> Iterator[list[Question]]:
    """Group questions of similar size: 16 batches are gathered, sorted by area and split."""
    held: list[Question] = []
    for question in stream:
        held.append(question)
        if len(held) == 16 * size:
            yield from _cut(held, size)
            held = []
    yield from _cut(held, size)


def _cut(held: list[Question], size: int) -> Iterator[list[Question]]:
    held.sort(key=lambda question: (question.image.width * question.image.height, question.index))
    for start in range(0, len(held), size):
        yield held[start : start + size]


def answers(model: Any, processor: Any, questions: Sequence[Question]) -> list[str]:
    """Answer a batch of questions with greedy decoding.

    Generation stops a few tokens after the longest expected answer: a longer one is wrong whatever follows.
    """
    conversations = []
    for question in questions:
        content = [{"type": "image", "image": question.image}, {"type": "text", "text": question.text}]
        conversations.append([{"role": "user", "content": content}])
    tokenizer = processor.tokenizer
    longest = max(len(tokenizer(question.answer, add_special_tokens=False)["input_ids"]) for question in questions)
    return answer_batch(model, processor, conversations, longest + 4)


def evaluate(
    name: str | None,
    rows_file: Path,
    tasks: Sequence[str],
    count: int,
    easy_count: int,
    pictures: Pictures,
    batch_size: int,
) -> list[dict[str, Any]]:
    """Answer all questions that `rows_file` does not hold yet, and return the rows of all.

    Raises:
        FoveateError: a task does not exist, or the rows come from an evaluation with other settings or questions.
    """
    from foveate.synthetic import TASKS

    unknown = sorted(set(tasks) - {*TASKS, EASY_VQA})
    if unknown:
        raise FoveateError(f"unknown tasks {', '.join(unknown)}; possible are {', '.join((*TASKS, EASY_VQA))}.")
    settings = {"model": name or "embedded", **pictures.settings()}
    rows = _read_rows(rows_file, settings)
    if EASY_VQA in tasks and any(row["task"] == EASY_VQA for row in rows):
        # Which ones are spread over the split depends on their number.
        asked = {question.index: question.text for question in _easy_questions(easy_count)}
        if any(asked.get(row["index"]) != row["question"] for row in rows if row["task"] == EASY_VQA):
            raise FoveateError(f"{rows_file} holds another number of questions of {EASY_VQA}; choose another file.")
    done: dict[str, set[int]] = defaultdict(set)
    for row in rows:
        done[row["task"]].add(row["index"])
    model, processor = load(name)
    with rows_file.open("a", encoding="utf-8") as file:
        if not rows_file.stat().st_size:
            file.write(json.dumps(settings) + "\n")
        for task in tasks:
            stream = questions(task, easy_count if task == EASY_VQA else count, pictures, done[task])
            for batch in batches(stream, batch_size):
                for question, text in zip(batch, answers(model, processor, batch), strict=True):
                    row = {
                        "task": task,
                        "index": question.index,
                        "question": question.text,
                        "answer": question.answer,
                        "text": text,
                        "right": text == question.answer.strip(),
                    }
                    rows.append(row)
                    file.write(json.dumps(row) + "\n")
                file.flush()
            of_task = [row for row in rows if row["task"] == task]
            notes.print(f"{task}: {sum(row['right'] for row in of_task)} of {len(of_task)}")
    return [row for row in rows if row["task"] in tasks and (row["task"] == EASY_VQA or row["index"] < count)]


def _read_rows(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Read the rows of an earlier evaluation with the same settings; an incomplete last line is removed."""
    if not path.exists():
        return []
    lines = read_text(path).splitlines()
    entries = []
    for line in lines:
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    if entries and entries[0] != settings:
        raise FoveateError(f"{path} holds rows of another evaluation, {entries[0]}; choose another file or remove it.")
    if len(entries) < len(lines):
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return entries[1:]


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Score every task, and the short words and numbers that appear in the images as text."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["task"]].append(row)
    short = [row for row in rows if row["task"] in READING and len(row["answer"]) in SHORT]
    result: dict[str, Any] = {"tasks": {task: asdict(Score.of(group)) for task, group in groups.items()}}
    if short:
        result["reading_1_to_8_characters"] = {
            "tasks": sorted({row["task"] for row in short}),
            **asdict(Score.of(short)),
        }
    return result


def main(
    model: Annotated[str, typer.Argument(help="Folder or Hub id; `embedded` is the embedded model.")] = "embedded",
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON file to write.")] = Path("evaluation.json"),
    task: Annotated[list[str] | None, typer.Option(help="Only this task; may be given several times.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Held-out questions per rendered task.")] = 500,
    easy_count: Annotated[int, typer.Option(min=1, help="Questions of easy-VQA's test split.")] = 9673,
    difficulty: Annotated[float, typer.Option(min=0, max=1, help="Difficulty of the rendered images.")] = 1.0,
    longest: Annotated[int, typer.Option(min=128, help="Longest side of the rendered images.")] = 640,
    least: Annotated[float | None, typer.Option(min=4, help="Smallest height of capitals in pixels.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions answered at once.")] = 16,
) -> None:
    """Measure the exact-match accuracy of a model, task by task."""
    from foveate.synthetic import TASKS

    rows_file = output.with_suffix(".rows.jsonl")
    rows_file.parent.mkdir(parents=True, exist_ok=True)
    name = None if model == "embedded" else model
    pictures = Pictures(difficulty, (128, longest), least)
    try:
        rows = evaluate(name, rows_file, task or [*TASKS, EASY_VQA], count, easy_count, pictures, batch_size)
    except FoveateError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    document = {
        "model": model,
        "split": {"rendered": "heldout", EASY_VQA: "test"},
        **pictures.settings(),
        "interval": "Wilson, 95 %",
        **summary(rows),
        "versions": {"foveate": foveate.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "command": shlex.join(["python", "-m", "foveate.benchmark.embedded", *sys.argv[1:]]),
    }
    write_json(output, document)
    typer.echo(f"{output} and {rows_file}")


if __name__ == "__main__":
    typer.run(main)
