"""A source of clips that are rendered while training."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from foveate.clips import Clip, clip_of_frames
from foveate.core.errors import FoveateError
from foveate.training.batch_stream import Draw, difficulties_at, drawn_side
from foveate.training.examples import Example
from foveate.training.recipe import Clips

if TYPE_CHECKING:
    from foveate.synthetic.clips import ClipSample

#: Seeds that are tried for a scene that fits a size.
_ATTEMPTS = 8


class ClipSource:
    """Clips rendered while training; all of a group have one size, duration and frame rate.

    Sides are multiples of the unit, so that pixels reach the model unscaled.

    Args:
        settings: Tasks, sizes, durations, frame rates and difficulties.
        unit: Pixels on the side of a token.

    Raises:
        FoveateError: a task does not exist, or is larger than the sizes allow.
    """

    def __init__(self, settings: Clips, unit: int) -> None:
        from foveate.synthetic.clips import CLIP_TASKS, smallest_clip

        self._settings = settings
        self._unit = unit
        self._tasks = settings.tasks or dict.fromkeys(CLIP_TASKS, 1.0)
        self._smallest = {task: smallest_clip(task) for task in self._tasks}
        largest = settings.sizes.width[1] // unit * unit, settings.sizes.height[1] // unit * unit
        for task, least in self._smallest.items():
            if largest[0] < least[0] or largest[1] < least[1]:
                raise FoveateError(
                    f"the task {task} needs frames of at least {least[0]} x {least[1]} pixels, but the largest with "
                    f"sides that are multiples of {unit} have {largest[0]} x {largest[1]}."
                )

    def draws(self, positions: range, progress: float, rng: np.random.Generator) -> list[Draw]:
        """See `Source.draws`; task and difficulty are drawn for every clip, all else for the group."""
        settings = self._settings
        share = min(progress / settings.growth, 1.0)
        size = self._size(rng)
        tasks = [task for task, least in self._smallest.items() if size[0] >= least[0] and size[1] >= least[1]]
        weights = np.array([self._tasks[task] for task in tasks])
        first, last = settings.seconds, settings.final_seconds or settings.seconds
        ends = [round(a + (b - a) * share) for a, b in zip(first, last, strict=True)]
        seconds = int(rng.integers(ends[0], ends[1] + 1))
        fps = float(rng.choice(settings.fps))
        easiest, hardest = difficulties_at(settings, share)
        draws = []
        for _ in positions:
            task = tasks[rng.choice(len(tasks), p=weights / weights.sum())]
            difficulty = float(rng.uniform(easiest, hardest))
            seed = int(rng.integers(2**62))
            draws.append(partial(_render, task, seed, size, seconds, fps, difficulty, settings.questions))
        return draws

    def _size(self, rng: np.random.Generator) -> tuple[int, int]:
        """Width and height of the frames of a group, which at least one task fits."""
        sizes = self._settings.sizes
        while True:
            width, height = (drawn_side(rng, *ends, self._unit) for ends in (sizes.width, sizes.height))
            if any(width >= least[0] and height >= least[1] for least in self._smallest.values()):
                return width, height


def _render(
    task: str, seed: int, size: tuple[int, int], seconds: int, fps: float, difficulty: float, questions: int
) -> Example:
    from foveate.synthetic.clips import render_clip

    failure: RuntimeError | None = None
    for attempt in range(_ATTEMPTS):
        try:
            sample = render_clip(
                task, seed + attempt, size=size, seconds=seconds, fps=fps, difficulty=difficulty, most=questions
            )
        except RuntimeError as error:  # this scene does not fit the size; another one may
            failure = error
        else:
            clip, asked = clip_of(sample), (sample.question, sample.answer)
            facts = (sample.more, sample.places, sample.named, sample.meta["scene"])
            return Example.of_clip(clip, *asked, sample.task, *facts)
    raise failure or RuntimeError("there is no clip to draw")


def clip_of(sample: ClipSample) -> Clip:
    """A rendered clip in the form in which clips of files are read."""
    return clip_of_frames([*sample.frames], sample.timestamps)
