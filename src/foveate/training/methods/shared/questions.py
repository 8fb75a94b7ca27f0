"""Training and held-out questions about images: from files, or rendered."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foveate.core.errors import FoveateError
from foveate.synthetic.rendering import LARGEST_SIDE
from foveate.training.batch_stream import Draw, ListSource, RenderedSource
from foveate.training.dataset import read_conversations
from foveate.training.examples import PLACEHOLDER, Example
from foveate.training.methods.shared.config import TrainConfig, at_least_one, identity, option
from foveate.training.recipe import Rendered, Sizes

#: Sizes of rendered images; some trainers pay a backward pass through every pair of tokens for each.
SIZES = Sizes((96, 512), (96, 512), 150_000)

DATA_HELP = (
    "File of conversations in LLaVA's format, JSON or JSONL; may be repeated. Else questions about rendered images."
)
IMAGES_HELP = "Folder of the files' image paths; each file's own by default."


@dataclass(frozen=True, kw_only=True)
class QuestionsConfig(TrainConfig):
    """Options of trainers whose samples are questions with answers."""

    steps: int = option(500, "Optimizer steps.", minimum=1)
    batch_size: int = option(8, "Questions a step.", minimum=1)
    data: tuple[Path, ...] = option((), DATA_HELP, identifies=False)
    images: Path | None = option(None, IMAGES_HELP, identifies=False)
    limit: int | None = option(None, "Read this many of the files' conversations.", minimum=1)
    sides: tuple[int, int] | None = option(
        None,
        "Shortest and longest side of rendered pages, in pixels, to learn from and to be measured on.",
        shown="96,512, measured on 128,512",
    )
    difficulty: float | None = option(
        None,
        "Of rendered pages, 0 to 1: the greatest to learn from, and the one to be measured on; 0 is large, clean type.",
        minimum=0,
        shown="1, measured on 0.5",
    )
    held_out: int = option(100, "Held-out rendered questions to measure on.", minimum=1, identifies=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "limit", "held_out")
        if self.limit is not None and not self.data:
            raise FoveateError("--limit is for files; questions about rendered images have no end.")
        check_images(self.images, self.data)
        if self.difficulty is not None and not 0 <= self.difficulty <= 1:
            raise FoveateError(f"difficulty lies between 0 and 1, not {self.difficulty}.")
        _ = self.pages

    @property
    def pages(self) -> Pages:
        """The rendered images."""
        return Pages(self.sides, self.difficulty)

    def examples(self) -> Callable[[int], Example]:
        """Examples by number; see `samples`."""
        return samples(self.data, self.images, self.limit, self.seed, self.pages)

    def about(self) -> dict[str, Any]:
        """What makes a run what it is, the content of files included."""
        return identity(self) | {"data": digests(self.data)}


def check_images(images: Path | None, data: Sequence[Path]) -> None:
    """Refuse a folder of images without files that name some.

    Raises:
        FoveateError: there is such a folder, and no file.
    """
    if images is not None and not data:
        raise FoveateError("--images is the folder of the files' image paths; name the files with --data.")


def digests(paths: Sequence[Path]) -> list[str]:
    """Hashes of files, which change when they do.

    Raises:
        FoveateError: a file cannot be read.
    """
    try:
        return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    except OSError as error:
        raise FoveateError(f"{error.filename} cannot be read: {error.strerror}.") from error


def rendered_samples(count: int, seed: int) -> list[Draw]:
    """Questions about rendered images; of another `count` the first ones are the same."""
    return [rendered_sample(number, seed) for number in range(count)]


def rendered_sample(number: int, seed: int, pages: Rendered | None = None) -> Draw:
    """Question `number` about a rendered image."""
    source = RenderedSource(pages or Rendered(sizes=SIZES), unit=32)
    return source.draws(range(number, number + 1), 1.0, np.random.default_rng((seed, number)))[0]


def file_samples(paths: Sequence[Path], images: Path | None, limit: int | None, seed: int) -> list[Draw]:
    """Conversations with images of files in LLaVA's format, in a random order, `limit` of them at most.

    Raises:
        FoveateError: a file has problems (all are named), or none shows an image.
    """
    examples = [example for path in paths for example in read_conversations(path, images)]
    shown = [e for e in examples if any(PLACEHOLDER in turn["value"] for turn in e.conversations)]
    if not shown:
        raise FoveateError(f"{', '.join(map(str, paths))}: no conversation there shows an image.")
    source = ListSource(shown.__getitem__, len(shown), seed)
    count = len(shown) if limit is None else min(limit, len(shown))
    return source.draws(range(count), 0.0, np.random.default_rng(seed))


@dataclass(frozen=True)
class Pages:
    """Rendered images that a small network learns from and is measured on.

    Args:
        sides: Shortest and longest side in pixels; None: 96 to 512 to learn from, 128 to 512 to be measured on.
        difficulty: The greatest that it learns from, and the one that it is measured on; None: 1, and 0.5.

    Raises:
        FoveateError: no task can be drawn so.
    """

    sides: tuple[int, int] | None = None
    difficulty: float | None = None

    def __post_init__(self) -> None:
        low, high = self.sides or (128, 512)
        if not 16 <= low <= high <= LARGEST_SIDE:
            raise FoveateError(f"sides lie between 16 and {LARGEST_SIDE} pixels, the shortest first, not {low},{high}.")
        if not self._tasks():
            raise FoveateError(f"none of the rendered tasks fits on pages of at most {high} pixels.")

    def sample(self, number: int, seed: int) -> Example:
        """Question `number` to learn from."""
        sizes = SIZES if self.sides is None else Sizes(self.sides, self.sides)
        hardest = 1.0 if self.difficulty is None else self.difficulty
        return rendered_sample(number, seed, Rendered(sizes=sizes, difficulty=(0.0, hardest)))()

    def held_out(self, count: int) -> list[Example]:
        """Questions with other fonts and words than those of training, all kinds that fit in turn."""
        from foveate.synthetic import render

        tasks = self._tasks()
        difficulty = 0.5 if self.difficulty is None else self.difficulty
        examples = []
        for number in range(count):
            task = tasks[number % len(tasks)]
            sample = render(task, number, split="heldout", sides=self.sides or (128, 512), difficulty=difficulty)
            examples.append(Example.of_question(sample.image, sample.question, sample.answer))
        return examples

    def _tasks(self) -> list[str]:
        from foveate.synthetic import TASKS, smallest_size

        _, longest = self.sides or (128, 512)
        return [task for task in sorted(TASKS) if max(smallest_size(task)) <= longest]


def samples(
    data: Sequence[Path], images: Path | None, limit: int | None, seed: int, pages: Pages = Pages()
) -> Callable[[int], Example]:
    """Examples by number: those of files in LLaVA's format, over and over, or questions about rendered images.

    Raises:
        FoveateError: a file has problems, or none shows an image.
    """
    if not data:
        return lambda number: pages.sample(number, seed)
    draws = file_samples(data, images, limit, seed)
    return lambda number: draws[number % len(draws)]()
