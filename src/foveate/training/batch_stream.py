"""A stream of training batches in which batch i is a function of i alone.

This makes a run resumable at no cost: to continue after step k the stream starts at batch k, without drawing
earlier ones, and yields exactly the batches of an uninterrupted run. The same holds for any number of
worker processes, and for several training processes, which share every batch between them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from foveate.core.errors import FoveateError
from foveate.training.collate import Collator
from foveate.training.examples import Example
from foveate.training.lengths import drawn_length
from foveate.training.recipe import Clips, Rendered, Sizes, Stage

if TYPE_CHECKING:
    from foveate.synthetic import Sample

#: Makes one example when called, in the process that needs it.
Draw = Callable[[], Example]


class Source(Protocol):
    """A source of examples."""

    def draws(self, positions: range, progress: float, rng: np.random.Generator) -> list[Draw]:
        """Functions that make the examples at some positions, one each.

        Args:
            positions: Numbers of the examples in the stage.
            progress: Fraction of the stage that is done, 0 to 1.
            rng: Random numbers that depend on the batch alone.
        """
        ...


class ListSource:
    """A finite list of examples, in a new order every epoch.

    Args:
        read: Makes the example at an index.
        count: Number of examples.
        seed: Seed of the orders.
    """

    def __init__(self, read: Callable[[int], Example], count: int, seed: int) -> None:
        self._read = read
        self._count = count
        self._order = lru_cache(maxsize=2)(partial(_order, count, seed))

    def draws(self, positions: range, progress: float, rng: np.random.Generator) -> list[Draw]:
        """See `Source.draws`; without other sources every example comes once per epoch."""
        return [
            partial(self._read, int(self._order(position // self._count)[position % self._count]))
            for position in positions
        ]


def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


#: Task of pages full of text, for dense supervision, in addition to `foveate.synthetic.TASKS`.
TEXT_PAGE = "text_page"
_SMALLEST_TEXT_PAGE = (32, 32)
_ATTEMPTS = 8


class Limits(NamedTuple):
    """What holds for every rendered image: `caps`, `least`, `questions` and `read_on` of `Rendered`."""

    caps: tuple[float, float]
    least: float | None
    questions: int
    read_on: float = 0.0


class RenderedSource:
    """Images rendered while training; sizes within a group differ by less than one unit.

    Half of the images have sides that are multiples of the unit, so that their pixels reach the model unscaled;
    the other half are up to one unit larger and are resized to the same grid, as images of any size are at inference.

    Args:
        settings: Tasks, sizes and difficulties.
        unit: Pixels on the side of a final token.

    Raises:
        FoveateError: a task does not exist, or is larger than the sizes allow.
    """

    def __init__(self, settings: Rendered, unit: int) -> None:
        from foveate.synthetic import TASKS, smallest_size

        self._settings = settings
        self._unit = unit
        self._limits = Limits(settings.caps, settings.least, settings.questions, settings.read_on)
        known = {TEXT_PAGE: _SMALLEST_TEXT_PAGE} | {task: smallest_size(task, settings.least) for task in TASKS}
        unknown = sorted(set(settings.tasks) - set(known))
        if unknown:
            raise FoveateError(f"unknown rendered tasks {', '.join(unknown)}; possible are {', '.join(known)}.")
        # Without names, the renderer picks among the tasks that fit a size.
        self._shares = settings.tasks
        self._smallest = {task: known[task] for task in settings.tasks}
        ends = [sizes for sizes in (settings.sizes, settings.final_sizes) if sizes is not None]
        for task, least in self._smallest.items():
            for sizes in ends:
                if sizes.width[1] < least[0] or sizes.height[1] < least[1]:
                    raise FoveateError(
                        f"the task {task} needs images of at least {least[0]} x {least[1]} pixels, but sizes end at "
                        f"{sizes.width[1]} x {sizes.height[1]}."
                    )
            if not any(_fits(least, sizes, unit) for sizes in ends):
                raise FoveateError(
                    f"the task {task} would never be drawn: it needs images of at least {least[0]} x {least[1]} "
                    f"pixels, sides are multiples of {unit}, and none of these fits into "
                    + " or ".join(f"{one.width[1]} x {one.height[1]}{_area(one)}" for one in ends)
                    + "; leave it out."
                )

    def draws(self, positions: range, progress: float, rng: np.random.Generator) -> list[Draw]:
        """See `Source.draws`; task and difficulty are drawn for every example, the size for the group."""
        share = min(progress / self._settings.growth, 1.0)
        width, height, tasks = self._size(share, rng)
        weights = np.array([self._shares[task] for task in tasks if task is not None])
        easiest, hardest = difficulties_at(self._settings, share)
        draws = []
        for _ in positions:
            task = tasks[rng.choice(len(tasks), p=weights / weights.sum() if len(weights) else None)]
            extra = rng.integers(0, self._unit, 2) if rng.random() < 0.5 else (0, 0)
            size = (width + int(extra[0]), height + int(extra[1]))
            difficulty = float(rng.uniform(easiest, hardest))
            # The task, then replacements for it if it finds no layout for this size.
            order = (task, *(other for other in tasks if other != task))
            draws.append(partial(_render, order, int(rng.integers(2**62)), size, difficulty, self._limits))
        return draws

    def _size(self, share: float, rng: np.random.Generator) -> tuple[int, int, list[str | None]]:
        """Width and height of a group, multiples of the unit, and the tasks that fit; None lets the renderer pick.

        Small sizes are as likely as large ones (even on a logarithmic scale).
        """
        sizes = sizes_at(self._settings, share)
        for _ in range(1000):
            width, height = (drawn_side(rng, *ends, self._unit) for ends in (sizes.width, sizes.height))
            fits = [t for t, least in self._smallest.items() if width >= least[0] and height >= least[1]]
            if (sizes.pixels is None or width * height <= sizes.pixels) and (fits or not self._shares):
                return width, height, [*fits] or [None]
        raise FoveateError(f"no size within {sizes} fits any of the tasks {', '.join(self._shares)}.")


def _fits(least: tuple[int, int], sizes: Sizes, unit: int) -> bool:
    """Whether an image with sides that are multiples of `unit` can have a task that needs `least` pixels a side."""
    width, height = (-(-side // unit) * unit for side in least)
    largest = [greatest_side(*ends, unit) for ends in (sizes.width, sizes.height)]
    return width <= largest[0] and height <= largest[1] and (sizes.pixels is None or width * height <= sizes.pixels)


def _area(sizes: Sizes) -> str:
    return "" if sizes.pixels is None else f" of at most {sizes.pixels} pixels"


def drawn_side(rng: np.random.Generator, low: int, high: int, unit: int) -> int:
    """A multiple of `unit` between two sides in pixels; small ones are as likely as large ones."""
    least, greatest = max(-(-low // unit), 1), greatest_side(low, high, unit) // unit
    return int(np.exp(rng.uniform(np.log(least), np.log(greatest + 1)))) * unit


def greatest_side(low: int, high: int, unit: int) -> int:
    """The greatest multiple of `unit` that `drawn_side` draws."""
    return max(high // unit, -(-low // unit), 1) * unit


def _between(first: float, last: float, share: float) -> float:
    return first + (last - first) * share


def difficulties_at(settings: Rendered | Clips, share: float) -> tuple[float, float]:
    """Range of difficulties at the fraction `share` of the growth."""
    first, last = settings.difficulty, settings.final_difficulty or settings.difficulty
    return _between(first[0], last[0], share), _between(first[1], last[1], share)


def sizes_at(settings: Rendered, share: float) -> Sizes:
    """Range of sizes at the fraction `share` of the growth."""
    first, last = settings.sizes, settings.final_sizes or settings.sizes

    def between(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
        return round(_between(a[0], b[0], share)), round(_between(a[1], b[1], share))

    width, height = between(first.width, last.width), between(first.height, last.height)
    if first.pixels is None and last.pixels is None:
        return Sizes(width, height)
    # Where only one end limits the area, the other end's limit is its greatest image.
    areas = [sizes.pixels or sizes.width[1] * sizes.height[1] for sizes in (first, last)]
    return Sizes(width, height, round(_between(*areas, share)))


def _render(
    tasks: Sequence[str | None], seed: int, size: tuple[int, int], difficulty: float, limits: Limits
) -> Example:
    """Render an example of the first of `tasks` that finds a layout for the size."""
    from foveate.synthetic.continuation import read_on

    sample = _attempt(tasks, seed, size, difficulty, limits)
    if limits.read_on:
        rng = random.Random(seed)
        further = read_on(rng, "train", sample.runs, sample.characters) if rng.random() < limits.read_on else None
        if further is not None:
            sample.more.append(further)
    return Example.of_question(
        sample.image,
        sample.question,
        sample.answer,
        sample.characters,
        sample.task,
        sample.more,
        sample.things,
    )


def _attempt(
    tasks: Sequence[str | None], seed: int, size: tuple[int, int], difficulty: float, limits: Limits
) -> Sample:
    from foveate.synthetic import render, render_text_page

    failure: RuntimeError | None = None
    for task in tasks:
        if task == TEXT_PAGE:
            return render_text_page(random.Random(seed), size, difficulty=difficulty, caps=limits.caps)
        for attempt in range(_ATTEMPTS):
            try:
                return render(
                    task,
                    seed + attempt,
                    size=size,
                    difficulty=difficulty,
                    least=limits.least,
                    most=limits.questions,
                )
            except RuntimeError as error:  # this layout does not fit the size; another one may
                failure = error
    raise failure or RuntimeError("there is no task to draw")


class BatchStream(IterableDataset):
    """Dataset of the collated micro-batches of one stage, from number `start` on.

    Args:
        stage: The stage; gives batch size, groups, accumulation and length.
        sources: Sources with their shares.
        collate: Makes a batch of examples.
        seed: Seed of the stage.
        start: Number of the first micro-batch.
        rank: Which of the training processes this is.
        processes: How many there are; every batch is divided among them.
        sampled: Train every micro-batch at one of its `lengths`, the same in all processes where the images allow it.
    """

    def __init__(
        self,
        stage: Stage,
        sources: Sequence[tuple[Source, float]],
        collate: Collator,
        seed: int,
        start: int = 0,
        rank: int = 0,
        processes: int = 1,
        sampled: bool = False,
    ) -> None:
        if stage.batch_size % processes:
            raise FoveateError(
                f"stage {stage.name}: a batch of {stage.batch_size} cannot be divided among {processes} processes."
            )
        self._stage = stage
        self._sources = [source for source, _ in sources]
        weights = np.array([weight for _, weight in sources])
        self._weights = weights / weights.sum()
        self._collate = collate
        self._seed = seed
        self._start = start
        self._rank = rank
        self._processes = processes
        self._sampled = sampled

    def __iter__(self) -> Iterator[Any]:
        """The batches, as dictionaries of tensors; in a worker also, as the last item, the error that ended it.

        Raised there, it would reach the training with the traceback of the worker as its text.
        """
        worker = get_worker_info()
        try:
            yield from self._batches(worker)
        except FoveateError as error:
            if worker is None:
                raise
            yield error

    def _batches(self, worker: Any) -> Iterator[dict[str, torch.Tensor]]:
        first, stride = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for number in range(self._start + first, self._stage.steps * self._stage.accumulate, stride):
            batch = self._collate([draw() for draw in self.draws(number)[self._rank :: self._processes]])
            if self._sampled and "lengths" in batch:
                batch["lengths"] = drawn_length(batch["lengths"], self._seed, number)
            yield batch

    def draws(self, number: int) -> list[Draw]:
        """The draws of micro-batch `number`, for all processes together."""
        stage = self._stage
        progress = number / (stage.steps * stage.accumulate)
        rng = np.random.default_rng((self._seed, number))
        size = stage.batch_size // stage.groups
        draws: list[Draw] = []
        for group in range(stage.groups):
            source = self._sources[rng.choice(len(self._sources), p=self._weights)]
            first = number * stage.batch_size + group * size
            draws += source.draws(range(first, first + size), progress, rng)
        return draws
