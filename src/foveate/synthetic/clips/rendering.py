"""`render_clip`: one question about one rendered clip."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foveate.core.errors import FoveateError
from foveate.synthetic.clips.acts import ClipRequest, build
from foveate.synthetic.clips.drawing import draw
from foveate.synthetic.clips.facts import Fact, facts
from foveate.synthetic.clips.scene import Point, Scene
from foveate.synthetic.page import DoesNotFit
from foveate.synthetic.words import SPLITS

#: Greatest side of a frame in pixels, longest duration in seconds and most frames of a clip.
LARGEST_SIDE, LONGEST, MOST_FRAMES = 1024, 60.0, 256
#: Shortest clip in seconds in which things can happen one after the other.
SHORTEST = 3.0
_ATTEMPTS = 150


@dataclass(slots=True)
class ClipSample:
    """A rendered clip with one question that has one exact short answer.

    Attributes:
        frames: ``(T, H, W, 3)`` uint8, in RGB.
        timestamps: second of every frame.
        fps: frames per second.
        question: a question in plain words.
        answer: printable ASCII.
        task: a name of `CLIP_TASKS`.
        meta: split, seed, difficulty, what is asked, and what is in the clip.
        more: further questions about the same clip with their answers, none of which is given away by the text before.
        places: of every question what shows its answer, one place for all of it or one for each of its characters;
            none where it is in no single place.
        named: a place at which each shape is shown, by its name.
    """

    frames: np.ndarray
    timestamps: tuple[float, ...]
    fps: float
    question: str
    answer: str
    task: str
    meta: dict[str, Any] = field(default_factory=dict)
    more: list[tuple[str, str]] = field(default_factory=list)
    places: list[tuple[Point, ...]] = field(default_factory=list)
    named: dict[str, Point] = field(default_factory=dict)


def _order(brief: ClipRequest) -> Scene:
    """Shapes that appear one after the other, in harder clips among others that stay."""
    staying = 0 if brief.rng.random() < 0.5 else brief.rng.randint(0, brief.upto(1, 3))
    return build(brief, ["appear"] * brief.rng.randint(2, max(2, brief.upto(2, 4))) + ["stay"] * staying)


def _count(brief: ClipRequest) -> Scene:
    """Shapes that are shown one after the other, in harder clips some of them again."""
    rng = brief.rng
    shapes = rng.randint(1, max(1, min(brief.upto(4, 6), int(brief.seconds))))
    repeats = rng.randint(0, brief.upto(1, 2)) if shapes > 1 and rng.random() < 0.3 + 0.4 * brief.difficulty else 0
    return build(brief, ["visit"] * shapes, repeats=repeats)


def _direction(brief: ClipRequest) -> Scene:
    """A shape that moves, in harder clips a second one, among shapes that stay."""
    rng = brief.rng
    second = ["move"] if rng.random() < 0.6 * brief.difficulty else []
    return build(brief, ["move", *second] + ["stay"] * rng.randint(0, brief.upto(1, 3)))


def _sign(brief: ClipRequest) -> Scene:
    """A sign that changes once, in harder clips twice, above a few shapes."""
    rng = brief.rng
    texts = 3 if rng.random() < 0.7 * brief.difficulty else 2
    return build(brief, rng.choices(("stay", "move", "blink"), k=rng.randint(0, brief.upto(1, 3))), texts=texts)


def _when(brief: ClipRequest) -> Scene:
    """Something happens at one moment: a shape appears or disappears, or a sign changes."""
    rng = brief.rng
    event = rng.choice(("appear", "vanish", "sign"))
    others = ["stay"] * rng.randint(0, brief.upto(1, 3))
    if rng.random() < 0.5 * brief.difficulty:
        others.append(rng.choice(("appear", "vanish", "move", "blink")))
    return build(brief, others, texts=2) if event == "sign" else build(brief, [event, *others])


def _moving(brief: ClipRequest) -> Scene:
    """A shape that moves among others that stay, in harder clips also some that blink."""
    rng = brief.rng
    others = ["stay"] * rng.randint(1, max(1, brief.upto(2, 4)))
    if rng.random() < 0.6 * brief.difficulty:
        others.append(rng.choice(("blink", "appear", "vanish")))
    return build(brief, [rng.choice(("move", "move", "enter", "leave")), *others])


def _change(brief: ClipRequest) -> Scene:
    """A shape that blinks, appears, disappears, enters or leaves, among others that stay."""
    rng = brief.rng
    acts = ["blink", "appear", "vanish", "enter", "leave"]
    act = rng.choice(acts)
    others = ["stay"] * rng.randint(1, max(1, brief.upto(2, 3)))
    if rng.random() < 0.6 * brief.difficulty:
        others.append(rng.choice([other for other in acts if other != act]))
    return build(brief, [act, *others])


@dataclass(frozen=True)
class _Task:
    """How to make the scenes of a task, and the least width and height of its frames in pixels."""

    scene: Callable[[ClipRequest], Scene]
    smallest: tuple[int, int] = (56, 56)


_TASKS: dict[str, _Task] = {
    "clip_order": _Task(_order),
    "clip_count": _Task(_count),
    "clip_direction": _Task(_direction),
    "clip_sign": _Task(_sign, (84, 84)),
    "clip_when": _Task(_when, (84, 84)),
    "clip_moving": _Task(_moving),
    "clip_change": _Task(_change),
}
CLIP_TASKS: tuple[str, ...] = tuple(_TASKS)


def smallest_clip(task: str) -> tuple[int, int]:
    """Least width and height in pixels of the frames that `render_clip` takes for a task."""
    if task not in _TASKS:
        raise FoveateError(f"unknown task {task!r}; possible are {', '.join(CLIP_TASKS)}.")
    return _TASKS[task].smallest


def check(task: str, split: str, size: tuple[int, int], seconds: float, fps: float, difficulty: float) -> None:
    """Raise FoveateError where `render_clip` cannot draw what its arguments ask for."""
    least = smallest_clip(task)
    if split not in SPLITS:
        raise FoveateError(f"unknown split {split!r}; possible are {', '.join(SPLITS)}.")
    if not 0 <= difficulty <= 1:
        raise FoveateError(f"difficulty must lie between 0 and 1, got {difficulty}.")
    if size[0] < least[0] or size[1] < least[1]:
        raise FoveateError(
            f"{task} needs frames of at least {least[0]} x {least[1]} pixels, got {size[0]} x {size[1]}."
        )
    if max(size) > LARGEST_SIDE:
        raise FoveateError(
            f"frames of at most {LARGEST_SIDE} pixels a side can be rendered, got {size[0]} x {size[1]}."
        )
    if not SHORTEST <= seconds <= LONGEST:
        raise FoveateError(f"a clip must last from {SHORTEST:g} to {LONGEST:g} seconds, got {seconds:g}.")
    if not fps >= 1 or seconds * fps > MOST_FRAMES:
        raise FoveateError(
            f"a clip must have at least 1 frame per second and at most {MOST_FRAMES} in all, got {fps:g}."
        )


def render_clip(
    task: str,
    seed: int = 0,
    split: str = "train",
    size: tuple[int, int] = (112, 112),
    *,
    seconds: float = 6.0,
    fps: float = 2.0,
    difficulty: float = 1.0,
    most: int = 3,
) -> ClipSample:
    """Render one clip and one question with its answer.

    The same arguments give the same sample wherever the same fonts and the same versions of Pillow and numpy are
    installed; the global random state is neither read nor changed. Something happens only at seconds with a frame: at
    whole ones, and in difficult clips of 2, 4, 6 ... frames per second at half ones too.

    Args:
        task: a name of `CLIP_TASKS`.
        seed: any whole number.
        split: "train" or "heldout". Held out are fonts and words of signs (every word and number of three characters
            or more), plates, and some wordings.
        size: width and height of the frames in pixels.
        seconds: duration; frames are at 0, 1/fps, 2/fps, ... seconds.
        fps: frames per second.
        difficulty: 0 (few large shapes, whole seconds, no noise) to 1 (everything).
        most: most questions about one clip.

    Raises:
        FoveateError: an unknown task or split, or a size, duration or rate that is not possible.
        RuntimeError: no scene was found that fits (none is known that does this).
    """
    difficulty, seconds, fps = float(difficulty), float(seconds), float(fps)
    width, height = int(size[0]), int(size[1])
    check(task, split, (width, height), seconds, fps, difficulty)
    rng = random.Random(f"{int(seed)}|{split}|{task}|{width}x{height}|{seconds}|{fps}|{difficulty}")
    times = [number / fps for number in range(round(seconds * fps))]
    for attempt in range(_ATTEMPTS):
        ground = "white" if rng.random() > 0.4 * difficulty else rng.choice(("black", "gray", "cyan", "pink"))
        brief = ClipRequest(rng, split, width, height, difficulty, attempt, seconds=seconds, fps=fps, ground=ground)
        try:
            scene = _TASKS[task].scene(brief)
            frames, letters = draw(brief, scene, times)
        except DoesNotFit:
            continue
        everything = facts(rng, scene, letters)
        if all(fact.task != task for fact in everything):  # two shapes that a viewer could mean
            continue
        asked, *further = _asked(rng, task, everything, most)
        meta = {
            "split": split,
            "seed": seed,
            "difficulty": difficulty,
            "attempt": attempt,
            "what": asked.what,
            "slots": asked.slots,
            "scene": scene,
        }
        more = [(fact.ask(rng, split), fact.answer) for fact in further]
        places = [fact.places for fact in (asked, *further)]
        named = {actor.name: actor.look for actor in scene.actors}
        return ClipSample(
            frames, tuple(times), fps, asked.ask(rng, split), asked.answer, task, meta, more, places, named
        )
    raise RuntimeError(f"{task} could not be drawn in {width} x {height} pixels (seed {seed}, split {split})")


def _asked(rng: random.Random, task: str, everything: list[Fact], most: int) -> list[Fact]:
    """The fact that is asked for, and up to `most` - 1 more whose answers no text before them names."""
    asked = [rng.choice([fact for fact in everything if fact.task == task])]
    named = {*asked[0].about, asked[0].answer}
    for fact in rng.sample(everything, len(everything)):
        if len(asked) >= most:
            break
        if fact in asked or fact.answer in named or (fact.what in ("order", "first", "last") and named & {*fact.about}):
            continue
        asked.append(fact)
        named |= {*fact.about, fact.answer}
    return asked
