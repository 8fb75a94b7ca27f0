"""`render`: one question about one rendered image."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from foveate.core.errors import FoveateError
from foveate.synthetic import cards, charts, documents, receipts, shapes, signs, snippets, tables, textpages
from foveate.synthetic.augmentation import degrade
from foveate.synthetic.page import DoesNotFit, Drawn, Page, RenderRequest
from foveate.synthetic.sample import Sample
from foveate.synthetic.words import SPLITS


@dataclass(frozen=True)
class Task:
    """How to draw one task.

    `smallest`: least width and height in pixels; `aspect`: usual range of width over height; `weight`: how often it
    is drawn when no task is named.
    """

    draw: Callable[[RenderRequest], tuple[Page, Drawn]]
    smallest: tuple[int, int] = (96, 64)
    aspect: tuple[float, float] = (0.5, 2.6)
    weight: float = 1.0
    colour_matters: bool = False
    turn: bool = True


_TASKS: dict[str, Task] = {
    "read_word": Task(textpages.read_word, (64, 32), (0.7, 4.0), 2.0),
    "read_line": Task(textpages.read_line, (96, 64), (0.7, 2.6), 1.0),
    "word_position": Task(textpages.word_position, (96, 64), (0.7, 3.0), 1.0),
    "transcribe": Task(textpages.transcribe, (80, 48), (0.7, 3.5), 2.0),
    "read_field": Task(documents.read_field, (96, 64), (0.6, 2.6), 4.0),
    "read_card": Task(cards.read_card, (112, 64), (0.7, 2.4), 1.0),
    "menu": Task(cards.menu, (112, 64), (0.6, 2.0), 1.0),
    "document_yes_no": Task(documents.document_yes_no, (96, 64), (0.6, 2.6), 1.0),
    "receipt_company": Task(receipts.receipt_company, (128, 144), (0.35, 1.1), 1.0),
    "receipt_date": Task(receipts.receipt_date, (128, 144), (0.35, 1.1), 1.0),
    "receipt_total": Task(receipts.receipt_total, (128, 144), (0.35, 1.1), 1.0),
    "receipt_address": Task(receipts.receipt_address, (128, 144), (0.35, 1.1), 1.0),
    "receipt_detail": Task(receipts.receipt_detail, (128, 144), (0.35, 1.1), 1.0),
    "snippet": Task(snippets.snippet, (96, 48), (0.6, 2.6), 3.0),
    "sign": Task(signs.sign, (64, 48), (0.5, 2.5), 2.0, True),
    "table_cell": Task(tables.table_cell, (112, 64), (0.7, 2.4), 2.0),
    "table_row": Task(tables.table_row, (112, 64), (0.7, 2.4), 1.0),
    "chart_value": Task(charts.chart_value, (128, 96), (0.7, 2.2), 1.0, True),
    "chart_extreme": Task(charts.chart_extreme, (128, 96), (0.7, 2.2), 1.0, True),
    "bar_chart": Task(charts.bar_chart, (128, 96), (0.7, 2.2), 2.0, True),
    "chart_compare": Task(charts.chart_compare, (128, 96), (0.7, 2.2), 1.0, True),
    "count_shapes": Task(shapes.count_shapes, (64, 64), (0.5, 2.0), 1.5, True, False),
    "shape_colour": Task(shapes.shape_colour, (64, 64), (0.5, 2.0), 1.0, True, False),
    "shape_kind": Task(shapes.shape_kind, (64, 64), (0.5, 2.0), 1.0, True, False),
    "shape_exists": Task(shapes.shape_exists, (64, 64), (0.5, 2.0), 1.5, True, False),
    "shape_position": Task(shapes.shape_position, (64, 64), (0.5, 2.0), 1.0, True, False),
}
TASKS: tuple[str, ...] = tuple(_TASKS)
LARGEST_SIDE = 1024
_ATTEMPTS = 150


#: Height of capitals, in pixels, of a receipt of the smallest size.
_SMALL_PRINT = 8.5


def smallest_size(task: str, least: float | None = None) -> tuple[int, int]:
    """Least width and height in pixels that `render` takes for `task` and can fill with capitals of `least` pixels."""
    width, height = _task(task).smallest
    # Everything but a receipt is set larger than that at its smallest size.
    if least is None or not task.startswith("receipt"):
        return width, height
    larger = max(1.0, least / _SMALL_PRINT)
    return round(width * larger), round(height * larger)


def _task(name: str) -> Task:
    if name not in _TASKS:
        raise FoveateError(f"unknown task {name!r}; possible are {', '.join(TASKS)}.")
    return _TASKS[name]


def usual_sides(difficulty: float) -> tuple[int, int]:
    """Shortest and longest side in pixels of images whose size is not given."""
    return round(64 + 64 * difficulty), round(192 + 448 * difficulty)


def check(
    task: str, split: str, size: tuple[int, int] | None, sides: tuple[int, int] | None, difficulty: float
) -> None:
    """Raise FoveateError where `render` cannot draw what is asked for; the arguments are those of `render`."""
    if split not in SPLITS:
        raise FoveateError(f"unknown split {split!r}; possible are {', '.join(SPLITS)}.")
    if not 0 <= difficulty <= 1:
        raise FoveateError(f"difficulty must lie between 0 and 1, got {difficulty}.")
    width, height = smallest_size(task)
    needs = f"{task} needs at least {width} x {height} pixels"
    if size is not None:
        if size[0] < width or size[1] < height:
            raise FoveateError(f"{needs}, got {size[0]} x {size[1]}.")
        if max(size) > LARGEST_SIDE:
            raise FoveateError(f"sides of at most {LARGEST_SIDE} pixels can be rendered, got {size[0]} x {size[1]}.")
        return
    low, high = usual_sides(difficulty) if sides is None else sides
    if not 16 <= low <= high <= LARGEST_SIDE:
        raise FoveateError(f"sides must be (shortest, longest) between 16 and {LARGEST_SIDE}, got {(low, high)}.")
    if high < max(width, height):
        raise FoveateError(f"{needs}, but the longest side asked for is {high}.")


def _draw_size(rng: random.Random, task: Task, sides: tuple[int, int], smallest: tuple[int, int]) -> tuple[int, int]:
    """A size between `sides`, not below `smallest`: mean side and proportions even on a logarithmic scale."""
    low, high = sides
    mean = low * (high / low) ** rng.random()
    proportion = (task.aspect[0] * (task.aspect[1] / task.aspect[0]) ** rng.random()) ** 0.5
    width, height = round(mean * proportion), round(mean / proportion)
    return min(high, max(low, smallest[0], width)), min(high, max(low, smallest[1], height))


def _growing(size: tuple[int, int], sides: tuple[int, int]) -> list[tuple[int, int]]:
    """A size, and larger ones up to the longest side, for what cannot be laid out in it."""
    sizes = [size]
    while min(sizes[-1]) < sides[1]:
        sizes.append((min(sides[1], sizes[-1][0] * 5 // 4), min(sides[1], sizes[-1][1] * 5 // 4)))
    return sizes


def _draw_task(rng: random.Random, size: tuple[int, int] | None, sides: tuple[int, int]) -> str:
    """A task that can be drawn at the size, by weight."""
    width, height = size if size is not None else (sides[1], sides[1])
    names = [n for n, t in _TASKS.items() if width >= t.smallest[0] and height >= t.smallest[1]]
    if not names:
        raise FoveateError(f"no task can be drawn at {width} x {height} pixels.")
    return rng.choices(names, [_TASKS[n].weight for n in names])[0]


def render(
    task: str | None = None,
    seed: int = 0,
    split: str = "train",
    size: tuple[int, int] | None = None,
    *,
    sides: tuple[int, int] | None = None,
    difficulty: float = 1.0,
    least: float | None = None,
    most: int = 3,
) -> Sample:
    """Render one image and one question with its answer.

    The same arguments give the same sample wherever the same fonts and the same versions of Pillow and numpy are
    installed; the global random state is neither read nor changed.

    Args:
        task: a name of `TASKS`, or None: one is drawn.
        seed: any whole number.
        split: "train" or "heldout". Held out are font families (when two or more are found), words (every word,
            code, date and amount of three characters or more that may be an answer; months, units, "LTD", colours
            and the names of usual fields are shared), layouts, some kinds of fields and some wordings.
        size: exact width and height in pixels; None: drawn between `sides`, and larger where nothing fits.
        sides: shortest and longest side in pixels when `size` is None; None: 64 to 192 at difficulty 0, 128 to 640
            at difficulty 1.
        difficulty: 0 (large type, little on the page, no noise) to 1 (everything).
        least: smallest height of capitals in pixels; None: 12 at difficulty 0 to 9 at difficulty 1, and less where a
            layout needs it.
        most: most questions about one picture.

    Raises:
        FoveateError: an unknown task or split, or a size below `smallest_size(task)`.
        RuntimeError: no layout was found that fits (none is known that does this).
    """
    difficulty = float(difficulty)
    size = None if size is None else (int(size[0]), int(size[1]))
    sides = None if sides is None else (int(sides[0]), int(sides[1]))
    rng = random.Random(f"{int(seed)}|{split}|{task}|{size}|{sides}|{difficulty}")
    if task is None:
        task = _draw_task(rng, size, sides or usual_sides(difficulty))
    check(task, split, size, sides, difficulty)
    what = _task(task)
    limits = sides or usual_sides(difficulty)
    sizes = [size] if size is not None else _growing(_draw_size(rng, what, limits, smallest_size(task, least)), limits)
    for width, height in sizes:
        for attempt in range(_ATTEMPTS):
            brief = RenderRequest(rng, split, width, height, difficulty, attempt, least, most)
            try:
                page, drawn = what.draw(brief)
            except DoesNotFit:
                continue
            image, characters = degrade(
                rng,
                page.image,
                page.characters,
                difficulty,
                turn=what.turn,
                colour_matters=what.colour_matters,
                contrast=page.contrast,
            )
            meta = {"split": split, "seed": seed, "difficulty": difficulty, "attempt": attempt, **drawn.meta}
            more = list(drawn.more)
            return Sample(image, drawn.question, drawn.answer, task, characters, meta, more, page.things, page.runs)
    tried = " or ".join(f"{width} x {height}" for width, height in sizes)
    raise RuntimeError(f"{task} could not be laid out in {tried} pixels (seed {seed}, split {split})")
