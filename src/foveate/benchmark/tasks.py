"""Tasks: rendered pages and clips of the held-out split, easy-VQA, chats about one image, and files of your own.

A task's questions are a function of its name and their number, so every plan is asked the same ones, and a run that was
stopped draws them again.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from typing import Any

from PIL import Image

from foveate.clips import Clip
from foveate.core.errors import FoveateError
from foveate.core.files import stamp
from foveate.images import open_image
from foveate.synthetic import TASKS, easy_vqa, render, smallest_size
from foveate.synthetic.clips import CLIP_TASKS, render_clip
from foveate.synthetic.clips import rendering as clip_rendering
from foveate.synthetic.page import least_cap
from foveate.synthetic.questions import ask
from foveate.synthetic.rendering import LARGEST_SIDE
from foveate.synthetic.sample import Sample
from foveate.synthetic.shapes import COLOUR_OF, KIND_OF
from foveate.training.clip_source import clip_of
from foveate.training.dataset import read_conversations
from foveate.training.examples import PLACEHOLDER

EASY_VQA, CHAT, DETAIL = "easy_vqa", "chat", "detail"
#: The first two questions of every chat in the other order.
SWAPPED = "chat_swapped"

#: Groups of tasks; their names can be used wherever a task is named.
GROUPS: dict[str, tuple[str, ...]] = {
    "reading": (
        "read_word",
        "read_line",
        "word_position",
        "transcribe",
        "read_field",
        "read_card",
        "menu",
        "receipt_company",
        "receipt_date",
        "receipt_total",
        "receipt_address",
        "receipt_detail",
        "sign",
    ),
    "tables": ("table_cell", "table_row"),
    "counting": ("count_shapes",),
    "charts": ("chart_value", "chart_extreme", "chart_compare"),
    "colour": ("shape_colour", "shape_kind"),
    "yes/no": ("document_yes_no", "shape_exists"),
    "clips": CLIP_TASKS,
}

#: Pages that chats are about, one after the other; each has several questions, about different places.
CHAT_PAGES = ("shape_colour", "read_field", "shape_kind", "table_cell", "receipt_date", "read_card")

#: Pages with small type that `detail` draws, one after the other.
DETAIL_PAGES = ("read_field", "table_cell", "receipt_total", "menu", "chart_value")
#: Capitals on these pages are at most the longest side allowed divided by this.
SMALL_TYPE = 50
#: Margin of the least longest side above the smallest capitals that are drawn; without it no page has them.
_ROOM = 1.06

#: Pages of one question are drawn with their number as seed, as `foveate.benchmark.embedded` does; where pages are
#: drawn until one is as it is wanted, the seeds of a number begin here.
_SEEDS = 1_000
_ATTEMPTS = _SEEDS
#: From this attempt on a page has the longest side allowed, which holds most.
_LARGEST_FROM = 400


@dataclass(frozen=True)
class ClipSettings:
    """Settings of rendered clips.

    Args:
        size: Width and height of the frames in pixels.
        seconds: Shortest and longest duration, in whole seconds.
        fps: Frames per second.
    """

    size: tuple[int, int] = (112, 84)
    seconds: tuple[int, int] = (4, 6)
    fps: float = 2.0

    def seconds_of(self, index: int) -> int:
        """Duration of the clip number `index`."""
        shortest, longest = self.seconds
        return shortest + index % (longest - shortest + 1)


@dataclass(frozen=True)
class Item:
    """One or several images, or a clip, with the questions asked about them in turn.

    Args:
        task: Name of the task.
        index: Number within it.
        images: Shown before the first question.
        turns: Question and right answer of every turn.
        system: Text of a system turn before the first question; "" for none.
        clip: Shown before the first question.
    """

    task: str
    index: int
    images: tuple[Image.Image, ...]
    turns: tuple[tuple[str, str], ...]
    system: str = ""
    clip: Clip | None = None

    @property
    def pixels(self) -> int:
        """Number of pixels of all images and frames."""
        return sum(image.width * image.height for image in self.images) + (0 if self.clip is None else self.clip.pixels)


def names() -> tuple[str, ...]:
    """Names of all built-in tasks about images; those about clips are `CLIP_TASKS`."""
    return (*TASKS, EASY_VQA, CHAT, SWAPPED, DETAIL)


def tasks_of(requested: Sequence[str]) -> tuple[str, ...]:
    """Expand names of tasks and groups, `all` (about images) and paths of files into tasks, each once.

    Raises:
        FoveateError: a name is none of these, easy-VQA is not installed, or a file cannot be read.
    """
    expanded: list[str] = []
    for name in requested:
        if name == "all":
            expanded += names()
        elif name in GROUPS:
            expanded += GROUPS[name]
        elif name in names() or name in CLIP_TASKS:
            expanded.append(name)
        elif Path(name).suffix in (".json", ".jsonl"):
            _file(name)
            expanded.append(name)
        else:
            raise FoveateError(
                f"unknown task {name!r}; possible are all, {', '.join((*GROUPS, *names(), *CLIP_TASKS))}, and files of "
                "conversations in LLaVA's format (.json or .jsonl)."
            )
    if EASY_VQA in expanded and find_spec("easy_vqa") is None:
        raise FoveateError("easy-VQA needs a package; install it with `pip install easy-vqa`.")
    return tuple(dict.fromkeys(expanded))


def group_of(task: str) -> str | None:
    """Return the group that a task belongs to."""
    return next((group for group, tasks in GROUPS.items() if task in tasks), None)


def items(
    task: str,
    count: int,
    *,
    difficulty: float = 1.0,
    sides: tuple[int, int] = (128, 640),
    clips: ClipSettings | None = None,
    first: int = 0,
) -> Iterator[Item]:
    """Return items `first` to `first + count - 1` of a task.

    Rendered pages and clips are of the held-out split. Those of easy-VQA's test split, and of a file, are `count`
    spread evenly from all (`first` shifts them), or all where there are fewer; entries of a file without an image are
    left out.

    Args:
        task: A name of `names()` or `CLIP_TASKS`, or the path of a file.
        count: Items.
        difficulty: Of rendered pages and clips, 0 to 1.
        sides: Shortest and longest side of rendered pages in pixels.
        clips: Of rendered clips; by default small ones.
        first: Number of the first item.

    Raises:
        FoveateError: there is no such task, it cannot be drawn so, or a file cannot be read.
    """
    if task == EASY_VQA:
        yield from _spread(task, _easy(), count, first)
    elif task in (CHAT, SWAPPED):
        for index in range(first, first + count):
            item = _chat(index, difficulty, sides)
            yield item if task == CHAT else replace(item, task=SWAPPED, turns=item.turns[1::-1])
    elif task == DETAIL:
        for index in range(first, first + count):
            yield _detail(index, difficulty, sides[1])
    elif task in TASKS:
        for index in range(first, first + count):
            sample = render(task, index, split="heldout", sides=sides, difficulty=difficulty)
            yield Item(task, index, (sample.image,), ((sample.question, sample.answer),))
    elif task in CLIP_TASKS:
        shape = clips or ClipSettings()
        for index in range(first, first + count):
            drawn = render_clip(
                task,
                index,
                "heldout",
                shape.size,
                seconds=shape.seconds_of(index),
                fps=shape.fps,
                difficulty=difficulty,
                most=1,
            )
            yield Item(task, index, (), ((drawn.question, drawn.answer),), clip=clip_of(drawn))
    else:
        yield from _spread(task, _file(task), count, first)


def check(tasks: Sequence[str], sides: tuple[int, int], difficulty: float) -> None:
    """Raise FoveateError if the pages of the tasks cannot be drawn in these sizes."""
    if not 0 <= difficulty <= 1:
        raise FoveateError(f"difficulty must lie between 0 and 1, got {difficulty:g}.")
    low, high = sides
    if not 16 <= low <= high <= LARGEST_SIDE:
        raise FoveateError(f"sides must be shortest,longest between 16 and {LARGEST_SIDE} pixels, got {low},{high}.")
    if DETAIL in tasks and high < (least := least_side(difficulty)):
        raise FoveateError(
            f"{DETAIL} needs a longest side of at least {least} pixels for its small type at difficulty "
            f"{difficulty:g}, got {high}."
        )
    drawn = [task for task in tasks if task in TASKS] + (list(CHAT_PAGES) if {CHAT, SWAPPED} & {*tasks} else [])
    for task in drawn:
        if high < max(smallest_size(task)):
            raise FoveateError(f"{task} needs a side of at least {max(smallest_size(task))} pixels, got {high}.")


def check_clips(tasks: Sequence[str], clips: ClipSettings, difficulty: float) -> None:
    """Raise FoveateError if the clips of the tasks cannot be rendered so."""
    shortest, longest = clips.seconds
    if shortest > longest:
        raise FoveateError(f"seconds must be shortest,longest, got {shortest},{longest}.")
    for task in tasks:
        if task in CLIP_TASKS:
            for seconds in clips.seconds:
                clip_rendering.check(task, "heldout", clips.size, seconds, clips.fps, difficulty)


def least_side(difficulty: float) -> int:
    """Return the shortest longest side in pixels at which `detail` finds pages with relatively small type."""
    return ceil(_ROOM * SMALL_TYPE * least_cap(difficulty))


# Chats and details


def _chat(index: int, difficulty: float, sides: tuple[int, int]) -> Item:
    """Several questions about one page, none of whose answers reveals a later one."""
    page = CHAT_PAGES[index % len(CHAT_PAGES)]
    for attempt in range(_ATTEMPTS):
        seed = _SEEDS * (index + 1) + attempt
        size = sides if attempt < _LARGEST_FROM else (sides[1], sides[1])
        sample = render(page, seed, split="heldout", sides=size, difficulty=difficulty)
        more = _more_shapes(sample, random.Random(seed)) if "shapes" in sample.meta else sample.more
        turns = [(sample.question, sample.answer)]
        turns += [turn for turn in more if turn[1] not in (sample.answer, *(answer for _, answer in turns[1:]))]
        distinct = {answer.lower(): question for question, answer in turns}
        if len(distinct) == len(turns) > 1:
            return Item(CHAT, index, (sample.image,), tuple(turns))
    raise FoveateError(f"no {page} with several questions was found at difficulty {difficulty:g}, sides {sides}.")


def _more_shapes(sample: Sample, rng: random.Random) -> list[tuple[str, str]]:
    """Up to two more questions about an image of shapes, each about other shapes than the first question."""
    shapes = [tuple(shape.split(" ", 1)) for shape in sample.meta["shapes"]]
    first = shapes[0]  # the one that is asked about
    asks_colour = sample.task == "shape_colour"
    known, answered = (1, 0) if asks_colour else (0, 1)
    questions = []
    for shape in shapes:
        alone = sum(other[known] == shape[known] for other in shapes) == 1
        if alone and shape[known] != first[known] and shape[answered] != first[answered]:
            ways = COLOUR_OF if asks_colour else KIND_OF
            slots = {"kind": shape[1]} if asks_colour else {"colour": shape[0]}
            questions.append((ask(rng, "heldout", ways, **slots), shape[answered]))
    return questions[:2]


def _detail(index: int, difficulty: float, longest: int) -> Item:
    """A question about small type on a page near the longest side allowed."""
    page = DETAIL_PAGES[index % len(DETAIL_PAGES)]
    for seed in range(_SEEDS * (index + 1), _SEEDS * (index + 1) + _ATTEMPTS):
        sample = render(page, seed, split="heldout", sides=(round(0.8 * longest), longest), difficulty=difficulty)
        if sample.meta["cap"] <= longest / SMALL_TYPE:
            return Item(DETAIL, index, (sample.image,), ((sample.question, sample.answer),))
    raise FoveateError(f"no {page} with small type was found at difficulty {difficulty:g}, {longest} pixels.")


# Lists


def _spread(task: str, everything: list[Item] | _File, count: int, first: int) -> Iterator[Item]:
    """Select `count` evenly spaced items, each with its index among all."""
    for index, place in enumerate(_places(len(everything), count, first)):
        chosen = everything[place]
        yield Item(task, first + index, chosen.images, chosen.turns, chosen.system)


def _places(total: int, count: int, first: int) -> list[int]:
    """Places of `count` evenly spaced items among `total`, shifted by `first`; all where there are fewer."""
    count = min(count, total)
    return [(index * total // count + first) % total for index in range(count)]


def turns_of(task: str, count: int) -> list[tuple[tuple[str, str], ...]] | None:
    """Questions and answers of the first `count` items of a file, without its images; None: the task is no file.

    Raises:
        FoveateError: the file cannot be read.
    """
    if task in (*names(), *CLIP_TASKS):
        return None
    file = _file(task)
    return [file.turns(place) for place in _places(len(file), count, 0)]


@lru_cache(maxsize=1)
def _easy() -> list[Item]:
    return [
        Item(EASY_VQA, number, (image,), ((question, answer),))
        for number, (image, question, answer) in enumerate(easy_vqa("test"))
    ]


class _File:
    """Conversations of a file; images are opened when they are needed."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._examples = [example for example in read_conversations(path) if example.images]
        if not self._examples:
            raise FoveateError(f"{path} has no conversation with an image.")
        for number, example in enumerate(self._examples, 1):
            questions = [turn["value"] for turn in example.conversations if turn["from"] == "human"]
            if any(PLACEHOLDER in question for question in questions[1:]):
                raise FoveateError(
                    f"{path}, conversation {number} of those with images, shows an image after its first question; "
                    "images can only be shown before it."
                )

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Item:
        example = self._examples[index]
        first = example.conversations[0]
        system = first["value"].strip() if first["from"] == "system" else ""
        images = tuple(open_image(image).convert("RGB") for image in example.images)
        return Item(self._path, index, images, self.turns(index), system)

    def turns(self, index: int) -> tuple[tuple[str, str], ...]:
        """Question and right answer of every turn of a conversation."""
        spoken = self._examples[index].conversations
        questions = [turn["value"].replace(PLACEHOLDER, "").strip() for turn in spoken if turn["from"] == "human"]
        right = [turn["value"].strip() for turn in spoken if turn["from"] == "gpt"]
        return tuple(zip(questions, right, strict=True))


def _file(path: str) -> _File:
    return _read_file(path, stamp(path))


@lru_cache(maxsize=8)
def _read_file(path: str, changed: tuple[Any, ...]) -> _File:
    return _File(path)
