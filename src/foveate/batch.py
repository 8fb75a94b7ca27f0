"""Batch inference over a file of questions about images and clips: `answer_file`.

Every answer is one line of the output, written with its batch in one step, and known by the number of its question. A
run that was stopped, even by a kill, goes on with what is missing: each question is answered once, and none is lost.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.answering import answer_batch
from foveate.answering.acquisition import answer_batch_acquiring
from foveate.clips import open_clip
from foveate.core.acquisition import AcquisitionMethod, split_acquisition
from foveate.core.errors import FoveateError, check_text
from foveate.core.full_model import is_full_model
from foveate.core.plan import Plan
from foveate.core.text_files import lines_of, read_text
from foveate.images import open_image
from foveate.runtime import compress

_FIELDS = ("id", "image", "images", "video", "question", "plan", "max_new_tokens")
#: What every line of answers begins with (`Question.shown`).
_BEGINNING = b'{"number": '


@dataclass(frozen=True)
class Question:
    """One line of a file of questions.

    Args:
        number: Which line, from 0 on, blank ones not counted.
        id: What the file calls it; its number where it has none.
        images: Image files.
        question: The text.
        video: Video file; its frames come before the images.
        plan: Plan that replaces the run's; "full model" for no plan.
        max_new_tokens: Length at which the answer is cut off, in place of the run's.
    """

    number: int
    id: str | int
    images: tuple[Path, ...]
    question: str
    plan: str | None = None
    max_new_tokens: int | None = None
    video: Path | None = None

    @property
    def shown(self) -> dict[str, Any]:
        """Fields that the answer repeats."""
        return {"number": self.number, "id": self.id, "question": self.question}


def read_questions(path: Path) -> list[Question]:
    """Read a JSONL file of questions: {"image": "a.png", "question": "..."} in every line.

    `images` in place of `image` is a list, and `video` is a video file; `id`, `plan` and `max_new_tokens` are optional.
    Paths begin at the file's folder.

    Raises:
        FoveateError: there is no such file, or lines of it are no questions: the first ten are named.
    """
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is not a file")  # a device could be read without end
        lines = lines_of(read_text(path))
    except (OSError, UnicodeDecodeError) as error:
        raise FoveateError(f"{str(path)!r} cannot be read: {error}.") from None
    questions: list[Question] = []
    problems: list[str] = []
    first_lines: dict[str | int, int] = {}
    for place, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            question = _question(json.loads(line), len(questions), path.parent)
            if question.id in first_lines:
                raise FoveateError(f"the id {question.id!r} is used in line {first_lines[question.id]} already")
            first_lines[question.id] = place
            questions.append(question)
        except FoveateError as error:
            problems.append(f"line {place}: {error}")
        except (ValueError, RecursionError) as error:
            problems.append(f"line {place}: no JSON: {str(error)[:100]}")
    if problems:
        more = f"; and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise FoveateError(f"{str(path)!r} is not a file of questions: {'; '.join(problems[:10])}{more}.")
    if not questions:
        raise FoveateError(f"{str(path)!r} has no questions.")
    return questions


def _question(entry: Any, number: int, folder: Path) -> Question:
    if not isinstance(entry, dict):
        raise FoveateError("a question is an object with 'image' and 'question'")
    entry = {name: value for name, value in entry.items() if value is not None}  # null counts as absent
    unknown = [name for name in entry if name not in _FIELDS]
    if unknown:
        raise FoveateError(f"unknown field {unknown[0]!r}; possible are {', '.join(_FIELDS)}")
    text, limit, plan, identifier = (entry.get(name) for name in ("question", "max_new_tokens", "plan", "id"))
    if not isinstance(text, str) or not text.strip():
        raise FoveateError("'question' must be a text")
    check_text(json.dumps(entry, ensure_ascii=False), "it")
    if "image" in entry and "images" in entry:
        raise FoveateError("'image' and 'images' cannot be combined; write one of them")
    names = entry.get("images", [entry["image"]] if "image" in entry else [])
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise FoveateError("'image' must be a path, 'images' a list of paths")
    images = tuple(folder / name for name in names)
    video = entry.get("video")
    if video is not None and not (isinstance(video, str) and video):
        raise FoveateError("'video' must be a path")
    video = None if video is None else folder / video
    for kind, paths in (("image", images), ("video", () if video is None else (video,))):
        for path in paths:
            try:
                there = path.is_file()
            except OSError:  # a name that is too long for one
                there = False
            if not there:
                raise FoveateError(f"there is no {kind} {str(path)[:200]!r}")
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise FoveateError("'max_new_tokens' must be a positive integer")
    if identifier is not None and (not isinstance(identifier, (str, int)) or isinstance(identifier, bool)):
        raise FoveateError("'id' must be a text or an integer")
    if plan is not None:
        if not isinstance(plan, str):
            raise FoveateError("'plan' must be a text")
        if not is_full_model(plan):
            plan = str(Plan.of(plan))
    return Question(number, number if identifier is None else identifier, images, text, plan, limit, video)


class Output:
    """Output file of answers, one JSON line per question.

    Args:
        path: JSONL file; made if it is missing. Only one run may write to it at a time.
        questions: Of the run, to hold earlier answers against.
        resume: Go on with what the file holds.

    Attributes:
        done: numbers of the questions that are answered.

    Raises:
        FoveateError: there are answers already and `resume` is not given, or they are to other questions; or another
            run writes to the file.
    """

    def __init__(self, path: Path, questions: Sequence[Question], resume: bool) -> None:
        self.path = path
        self.done: set[int] = set()
        self.errors = 0
        if path.exists() and not path.is_file():  # a device could be read without end
            raise FoveateError(f"{str(path)!r} is not a file that answers could be written to.")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b", buffering=0)  # what a failed write leaves behind must not come later
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise FoveateError(f"another run writes to {str(path)!r}.") from None
        try:
            self._read(questions, resume)
        except BaseException:
            self._file.close()
            raise

    def _read(self, questions: Sequence[Question], resume: bool) -> None:
        self._file.seek(0)
        content = self._file.read()
        if content and not resume:
            raise FoveateError(
                f"there are answers in {str(self.path)!r} already; continue with --resume, or name another file."
            )
        complete = content.rfind(b"\n") + 1
        # A kill may have left half an answer, and a machine that stopped zeros; any other text is somebody else's.
        half = content[complete:].strip(b"\0")
        if not (half.startswith(_BEGINNING) or _BEGINNING.startswith(half)):
            raise FoveateError(
                f"the last line of {str(self.path)!r} answers none of these questions; name another file."
            )
        known = {question.number: question for question in questions}
        for place, line in enumerate(content[:complete].splitlines(), 1):
            try:
                row = json.loads(line)
                question = known[row["number"]]
                same = question.shown == {name: row[name] for name in question.shown} and row["number"] not in self.done
            except (ValueError, KeyError, TypeError):
                same = False
            if not same:
                raise FoveateError(
                    f"line {place} of {str(self.path)!r} answers none of these questions; name another file."
                )
            self.done.add(row["number"])
            self.errors += "error" in row
        self._file.truncate(complete)

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append answers in one write and wait until they are on disk.

        Raises:
            FoveateError: they could not be written; existing lines of the file stay intact.
        """
        end = self._file.seek(0, os.SEEK_END)
        content = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
        try:
            written = 0
            while written < len(content):
                written += self._file.write(content[written:])
            os.fsync(self._file.fileno())
        except OSError as error:
            self._file.truncate(end)
            raise FoveateError(f"{str(self.path)!r} could not be written: {error.strerror}.") from None
        self.done |= {row["number"] for row in rows}
        self.errors += sum("error" in row for row in rows)

    def close(self) -> None:
        """Release the lock, so that other runs can write."""
        self._file.close()

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()


def batches(questions: Sequence[Question], size: int) -> Iterator[list[Question]]:
    """Group neighbouring questions with the same plan, at most `size` at a time."""
    held: list[Question] = []
    for question in questions:
        if held and (len(held) == size or question.plan != held[0].plan):
            yield held
            held = []
        held.append(question)
    if held:
        yield held


def answer_questions(
    model: Any, processor: Any, questions: Sequence[Question], plan: Plan | None = None, max_new_tokens: int = 128
) -> list[dict[str, Any]]:
    """Answer questions with the same plan together; one that fails alone becomes a row with its error.

    Args:
        model: As `foveate.load` returns it, without a plan.
        processor: Of the model.
        questions: A batch.
        plan: Of questions that name none. Its step that chooses frames acts on clips alone.
        max_new_tokens: Length at which answers are cut off.

    Returns:
        A row for each: number, id, question, plan, and text or error; under an acquisition also the number of turns,
            image tokens at the end and of the original image, and why tool calls were not followed.
    """
    question_plan = questions[0].plan
    chosen = plan if question_plan is None else None if is_full_model(question_plan) else Plan.of(question_plan)
    sampler = None if chosen is None else chosen.frame_step
    acquisition: AcquisitionMethod | None = None
    rows: dict[int, dict[str, Any]] = {}
    conversations = []
    for question in questions:
        head = {**question.shown, "plan": None if chosen is None else str(chosen)}
        try:
            images = [{"type": "image", "image": open_image(path)} for path in question.images]
            clips = []
            if question.video is not None:
                clip = open_clip(question.video, sampler=sampler, question=question.question)
                clips = [{"type": "video", "video": clip}]
            content = [*clips, *images, {"type": "text", "text": question.question}]
            conversations.append((question, head, [{"role": "user", "content": content}]))
        except FoveateError as error:
            rows[question.number] = {**head, "error": str(error)}

    def answer(some: Sequence[tuple[Question, dict[str, Any], Any]]) -> None:
        limits = [question.max_new_tokens or max_new_tokens for question, _, _ in some]
        asked = [messages for _, _, messages in some]
        try:
            if acquisition is None:
                results = [{"text": text} for text in answer_batch(model, processor, asked, limits)]
            else:
                acquired = answer_batch_acquiring(model, processor, asked, limits, acquisition)
                results = [{"text": one.text, **one.as_json()} for one in acquired]
        except FoveateError as error:
            if len(some) == 1:
                question, head, _ = some[0]
                rows[question.number] = {**head, "error": str(error)}
                return
            for entry in some:
                answer([entry])
            return
        for (question, head, _), result in zip(some, results, strict=True):
            rows[question.number] = {**head, **result}

    if conversations:
        try:
            acquisition, attached = split_acquisition(chosen, getattr(model, "name_or_path", ""))
            with _following(model, processor, attached):
                answer(conversations)
        except FoveateError as error:  # the model cannot follow the plan, or not be freed of it: not the run's end
            for question, head, _ in conversations:
                rows.setdefault(question.number, {**head, "error": str(error)})
    return [rows[question.number] for question in questions]


@contextmanager
def _following(model: Any, processor: Any, plan: Plan | None) -> Generator[None]:
    followed = None if plan is None else plan.for_model
    if followed is None:
        yield
    else:
        with compress(model, followed, processor=processor):
            yield


def answer_file(
    model: Any,
    processor: Any,
    questions: Sequence[Question],
    output: Output,
    *,
    plan: Plan | None = None,
    max_new_tokens: int = 128,
    batch_size: int = 8,
    progress: Callable[[int], object] = lambda count: None,
) -> None:
    """Answer the questions that have no answer yet.

    Args:
        model: As `foveate.load` returns it, without a plan.
        processor: Of the model.
        questions: All of them.
        output: Takes the answers, batch by batch.
        plan: Of questions that name none.
        max_new_tokens: Length at which answers are cut off.
        batch_size: Questions answered at once.
        progress: Called with the number of questions that were answered.

    Raises:
        FoveateError: the model cannot follow the plan of the run, raised before the first answer; or answers could
            not be written.
    """
    remaining = [question for question in questions if question.number not in output.done]
    acquisition, attached = split_acquisition(plan, getattr(model, "name_or_path", ""))
    if acquisition is not None:
        acquisition.read_prompts()
    with _following(model, processor, attached):
        pass
    for batch in batches(remaining, batch_size):
        output.add(answer_questions(model, processor, batch, plan, max_new_tokens))
        progress(len(batch))
