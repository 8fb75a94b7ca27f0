"""Split of questions into search and confirmation sets."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from foveate.benchmark.tasks import Item
from foveate.core.errors import FoveateError

#: A plan is not judged on fewer questions, unless there are no more.
_FEWEST = 8


@dataclass(frozen=True)
class Questions:
    """Two sets of items that share no image.

    Args:
        search: In the order in which they are asked, tasks in turns.
        confirm: Used for the winner alone.
    """

    search: tuple[Item, ...]
    confirm: tuple[Item, ...]

    @property
    def rungs(self) -> tuple[int, ...]:
        """Numbers of `search` items after which a plan is judged: a quarter, half, all."""
        total = len(self.search)
        return (*(part for part in (total // 4, total // 2) if part >= _FEWEST), total)


def divided(stream: Iterable[Item], seed: int) -> Questions:
    """Split every task's items into halves; questions about one image stay together.

    Args:
        stream: Items of all tasks.
        seed: The same items and seed are divided the same way.

    Raises:
        FoveateError: a task's questions are all about images of the other half.
    """
    by_task: dict[str, list[Item]] = {}
    for item in stream:
        by_task.setdefault(item.task, []).append(item)
    searched: dict[str, bool] = {}  # by image, over all tasks
    parts: dict[bool, list[list[Item]]] = {True: [], False: []}
    for number, (task, task_items) in enumerate(by_task.items()):
        by_image: dict[str, list[Item]] = {}
        for item in task_items:
            by_image.setdefault(_digest(item), []).append(item)
        order = list(by_image)
        random.Random(seed * 1_000_003 + number).shuffle(order)
        halves: dict[bool, list[Item]] = {True: [], False: []}
        # Images that another task has placed come first, so that the rest evens them out.
        for digest in sorted(order, key=lambda digest: digest not in searched):
            half = searched.setdefault(digest, len(halves[True]) <= len(halves[False]))
            halves[half] += by_image[digest]
        if not halves[True] or not halves[False]:
            raise FoveateError(f"{task} has too few images; the search and the confirmation need different ones.")
        for half, held in halves.items():
            parts[half].append(held)
    return Questions(_in_turns(parts[True]), _in_turns(parts[False]))


def _in_turns(lists: Sequence[Sequence[Item]]) -> tuple[Item, ...]:
    return tuple(item for row in zip_longest(*lists) for item in row if item is not None)


def _digest(item: Item) -> str:
    digest = hashlib.sha256()
    for image in item.images:
        digest.update(repr((image.mode, image.size)).encode())
        digest.update(image.tobytes())
    return digest.hexdigest()
