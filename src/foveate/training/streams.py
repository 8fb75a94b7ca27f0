"""An endless stream of training batches in which batch number i is a function of i alone.

That is what makes a run resumable at no cost: to go on after step k the stream starts at batch k, without drawing
what came before, and yields exactly what an uninterrupted run would have seen. The same holds for any number of
worker processes, and for several training processes, which share every batch between them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from foveate.errors import FoveateError
from foveate.training.collate import Collator
from foveate.training.examples import Example
from foveate.training.recipe import Rendered, Sizes, Stage

#: A page crowded with text, for dense supervision; not one of the tasks with a question.
TEXT_PAGE = "text_page"

#: Makes one example when called; drawing is left to the process that needs it.
Draw = Callable[[], Example]


class Source(Protocol):
    """Where examples come from."""

    def draws(self, positions: range, progress: float, rng: np.random.Generator) -> list[Draw]:
        """One draw for every position.

        Args:
            positions: Numbers of the examples in the stage.
            progress: Fraction of the stage that is done, 0 to 1.
            rng: Random numbers that depend on the batch alone.
        """
        ...


class ListSource:
    """A finite list of examples, gone through in a new order every epoch.

    Args:
        read: Makes the example at an index.
        count: Number of examples.
        seed: Seed of the orders.
    """

    def __init__(self, read: Callable[[int], Example], count: int, seed: int) -> None:
        self._read = read
        self._count = count
        self._order = lru_cache(maxsize=2)(partial(_order, count, seed))

    def draws(self, positions: range, progress: float, rng: np.random.Generator) -> list[Draw]:  # noqa: ARG002
        """See `Source.draws`; a source that has the batches to itself shows every example once per epoch."""
        return [
            partial(self._read, int(self._order(position // self._count)[position % self._count]))
            for position in positions
        ]


def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


class RenderedSource:
    """Images drawn while training, all of a group within one unit of the same size.

    Half of the images have sides that are multiples of the unit, so that their pixels reach the model untouched;
    the other half are up to one unit larger and are resized to the same grid, as images of any size are in use.

    Args:
        settings: Tasks and sizes.
        unit: Pixels on the side of a final token.
    """

    def __init__(self, settings: Rendered, unit: int) -> None:
        from foveate.training.data import TASKS

        self._settings = settings
        self._unit = unit
        shares = settings.tasks or dict.fromkeys(TASKS, 1.0)
        possible = {*TASKS, TEXT_PAGE}
        unknown = sorted(set(shares) - possible)
        if unknown:
            raise FoveateError(
                f"unknown rendered tasks {', '.join(unknown)}; possible are {', '.join(sorted(possible))}."
            )
        self._tasks = list(shares)
        self._weights = np.array([shares[task] for task in self._tasks]) / sum(shares.values())

    def draws(self, positions: range, progress: float, rng: np.random.Generator) -> list[Draw]:
        """See `Source.draws`; tasks are drawn for every example, the size for the group."""
        width, height = self._size(progress, rng)
        difficulty = difficulty_at(self._settings, progress)
        draws = []
        for _ in positions:
            task = self._tasks[rng.choice(len(self._tasks), p=self._weights)]
            extra = rng.integers(0, self._unit, 2) if rng.random() < 0.5 else (0, 0)
            size = (width + int(extra[0]), height + int(extra[1]))
            draws.append(partial(_render, task, int(rng.integers(2**62)), size, difficulty))
        return draws

    def _size(self, progress: float, rng: np.random.Generator) -> tuple[int, int]:
        """Width and height of a group, multiples of the unit; small sizes are as likely as large ones (log scale)."""
        sizes = sizes_at(self._settings, progress)
        for _ in range(1000):
            width, height = (self._side(low, high, rng) for low, high in (sizes.width, sizes.height))
            if sizes.pixels is None or width * height <= sizes.pixels:
                return width, height
        return sizes.width[0], sizes.height[0]

    def _side(self, low: int, high: int, rng: np.random.Generator) -> int:
        least = max(-(-low // self._unit), 1)
        greatest = max(high // self._unit, least)
        return int(np.exp(rng.uniform(np.log(least), np.log(greatest + 1)))) * self._unit


def sizes_at(settings: Rendered, progress: float) -> Sizes:
    """The range of sizes when the fraction `progress` of the stage is done."""
    first, last = settings.sizes, settings.final_sizes
    if last is None:
        return first
    share = min(progress / settings.growth, 1.0)

    def between(a: int, b: int) -> int:
        return round(a + (b - a) * share)

    width = (between(first.width[0], last.width[0]), between(first.width[1], last.width[1]))
    height = (between(first.height[0], last.height[0]), between(first.height[1], last.height[1]))
    if first.pixels is None and last.pixels is None:
        return Sizes(width, height)
    # A side without a limit of area is limited by its greatest image.
    areas = [s.pixels or s.width[1] * s.height[1] for s in (first, last)]
    return Sizes(width, height, between(*areas))


def difficulty_at(settings: Rendered, progress: float) -> float:
    """The difficulty of the images when the fraction `progress` of the stage is done."""
    if settings.final_difficulty is None:
        return settings.difficulty
    share = min(progress / settings.growth, 1.0)
    return settings.difficulty + (settings.final_difficulty - settings.difficulty) * share


def _render(task: str, seed: int, size: tuple[int, int], difficulty: float) -> Example:
    from foveate.training.data import render, render_text_page

    if task == TEXT_PAGE:
        sample = render_text_page(random.Random(seed), size, split="train", difficulty=difficulty)
    else:
        sample = render(task, seed, split="train", size=size, difficulty=difficulty)
    return Example.of_question(sample.image, sample.question, sample.answer, sample.characters, sample.task)


class BatchStream(IterableDataset):
    """Yields collated micro-batches of one stage, from number `start` on.

    Args:
        stage: The stage; gives batch size, groups, accumulation and length.
        sources: Sources with their shares.
        collate: Makes a batch of examples.
        seed: Seed of the stage.
        start: Number of the first micro-batch.
        rank: Which of the training processes this is.
        processes: How many there are; every batch is divided among them.
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

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = get_worker_info()
        first, stride = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for number in range(self._start + first, self._stage.steps * self._stage.accumulate, stride):
            yield self._collate([draw() for draw in self.draws(number)[self._rank :: self._processes]])

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
