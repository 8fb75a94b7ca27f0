"""Make scenes: choose shapes, what each does and when, and paths on which none touches another."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from foveate.synthetic.clips.scene import Actor, Point, Scene, Sign
from foveate.synthetic.page import DoesNotFit, RenderRequest
from foveate.synthetic.shapes import COLOURS, KINDS, look_alike, looks_like
from foveate.synthetic.signs import PLATES

DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
_EASY_KINDS = ("circle", "square", "triangle", "star")
_EASY_COLOURS = ("red", "green", "blue", "yellow", "black", "purple")
_PLATE_COLOURS = ("white", "yellow", "blue", "green", "red", "black")
#: Seconds that shapes take to enter and to leave.
_CROSSING = 1.5


@dataclass
class ClipRequest(RenderRequest):
    """What a scene is made for: a `RenderRequest`, with the duration and frame rate of the clip.

    Args:
        seconds: Duration.
        fps: Frames per second.
        ground: Name of the colour of the ground.
    """

    seconds: float = 4.0
    fps: float = 2.0
    ground: str = "white"

    @property
    def moments(self) -> list[float]:
        """Seconds at which something may happen: there is a frame at each, and one second before and after it.

        Whole seconds, and half ones in difficult clips of two frames per second or more.
        """
        halves = self.fps >= 2 and self.rng.random() < self.difficulty
        step = 0.5 if halves and self.fps % 2 == 0 else 1.0
        return [step * i for i in range(round(1 / step), int((self.seconds - 1) / step) + 1)]


def build(
    brief: ClipRequest,
    acts: list[str],
    *,
    texts: int = 0,
    repeats: int = 0,
) -> Scene:
    """Make a scene of shapes with these acts.

    Args:
        brief: What it is made for.
        acts: One for each shape, of `scene.ACTS`; `visit` for all or for none.
        texts: Texts that a sign shows one after the other; 0: there is no sign.
        repeats: Visits by shapes that have been shown before.

    Raises:
        DoesNotFit: the shapes do not fit, or more is to happen than there are moments.
    """
    rng = brief.rng
    acts = list(acts)
    eventful = [act for act in acts if act in ("appear", "vanish", "enter", "leave")]
    moments = brief.moments
    wanted = len(eventful) + max(0, texts - 1)
    if wanted > len(moments):
        raise DoesNotFit("more events than moments")
    times = rng.sample(moments, wanted)
    changes = sorted(times[len(eventful) :])
    sign, top = (None, 0.0) if not texts else _sign(brief, texts, changes)
    area = (0.0, top, float(brief.width), float(brief.height))
    visits = _visits(brief, acts.count("visit"), repeats)
    actors: list[Actor] = []
    events, visiting = iter(times), iter(visits)
    for act, (kind, colour) in zip(acts, _names(brief, len(acts), sign), strict=True):
        event = next(events) if act in ("appear", "vanish", "enter", "leave") else None
        if event is not None and act in ("enter", "leave") and event > brief.seconds - 2:
            raise DoesNotFit("no time to cross the edge")
        shown = next(visiting) if act == "visit" else None
        actors.append(_placed(brief, kind, colour, act, event, shown, area, actors))
    rng.shuffle(actors)
    return Scene(brief.seconds, actors, sign)


def _names(brief: ClipRequest, count: int, sign: Sign | None) -> list[tuple[str, str]]:
    """Kinds and colours that may be in one clip; in easy clips every shape has a colour of its own."""
    rng, d = brief.rng, brief.difficulty
    kinds = list(_EASY_KINDS if rng.random() > d else KINDS)
    colours = list(_EASY_COLOURS if rng.random() > d else COLOURS)
    distinct = rng.random() > d and count <= len(colours) - 2
    taken = {brief.ground} if sign is None else {brief.ground, sign.colour}
    pairs: list[tuple[str, str]] = []
    for _ in range(200):
        if len(pairs) == count:
            return pairs
        kind, colour = rng.choice(kinds), rng.choice(colours)
        if (kind, colour) in pairs or (distinct and colour in {other for _, other in pairs}):
            continue
        if look_alike(colour, taken - {colour}) or colour in taken:
            continue
        others = {other for _, other in pairs} - {colour}
        if look_alike(colour, others) or looks_like(kind, {other for other, _ in pairs} - {kind}):
            continue
        pairs.append((kind, colour))
    raise DoesNotFit("names")


def _visits(brief: ClipRequest, count: int, repeats: int) -> list[list[tuple[float, float]]]:
    """Intervals in which `count` shapes are shown one after the other, `repeats` of them once more."""
    if not count:
        return []
    rng = brief.rng
    order = rng.sample(range(count), count) + [rng.randrange(count) for _ in range(repeats)]
    # The same shape twice in a row would be one visit.
    if any(one == other for one, other in pairwise(order)):
        raise DoesNotFit("a visit that goes on")
    step = math.floor(brief.seconds / len(order))
    if step < 1:
        raise DoesNotFit("more visits than seconds")
    shown: list[list[tuple[float, float]]] = [[] for _ in range(count)]
    for number, which in enumerate(order):
        shown[which].append((float(number * step), float((number + 1) * step)))
    return shown


def _placed(
    brief: ClipRequest,
    kind: str,
    colour: str,
    act: str,
    event: float | None,
    shown: list[tuple[float, float]] | None,
    area: tuple[float, float, float, float],
    others: list[Actor],
) -> Actor:
    """An actor on a path on which it touches none of `others` while both are shown."""
    rng = brief.rng
    side = min(area[2] - area[0], area[3] - area[1], 0.8 * max(area[2] - area[0], area[3] - area[1]))
    largest = rng.uniform(0.15, 0.22 - 0.06 * brief.difficulty) * side
    for attempt in range(60):
        radius = max(6.0, largest * 0.99**attempt)
        actor = _acting(brief, kind, colour, act, event, shown, area, radius)
        if actor is not None and all(_apart(actor, other, brief.seconds) for other in others):
            return actor
    raise DoesNotFit("shapes")


def _acting(
    brief: ClipRequest,
    kind: str,
    colour: str,
    act: str,
    event: float | None,
    shown: list[tuple[float, float]] | None,
    area: tuple[float, float, float, float],
    radius: float,
) -> Actor | None:
    """An actor at a random place; None if it has no space to move."""
    rng, end = brief.rng, brief.seconds
    left, top, right, bottom = area[0] + radius + 2, area[1] + radius + 2, area[2] - radius - 2, area[3] - radius - 2
    if right <= left or bottom <= top:
        return None
    x, y = rng.uniform(left, right), rng.uniform(top, bottom)
    always = [(0.0, end)]
    actor = Actor(kind, colour, radius, act, [Point(0, x, y)], always, event)
    if act == "visit" and shown is not None:
        actor.shown = shown
    elif act == "appear" and event is not None:
        actor.shown = [(event, end)]
    elif act == "vanish" and event is not None:
        actor.shown = [(0.0, event)]
    elif act == "blink":
        half = 0.5 if brief.fps >= 4 and rng.random() < brief.difficulty else 1.0
        first = rng.choice((0, 1))
        actor.shown = [(half * i, half * (i + 1)) for i in range(first, math.ceil(end / half), 2)]
    elif act in ("move", "enter", "leave"):
        flat = area[1] > 0  # a sign is above: nothing passes through it
        actor.direction = rng.choice(("left", "right") if flat else tuple(DIRECTIONS))
        dx, dy = DIRECTIONS[actor.direction]
        length, low = (right - left, left) if dx else (bottom - top, top)
        if act == "move":
            moved = rng.uniform(0.55, 1.0) * length
            if moved < 2 * radius:
                return None
            begin = low + rng.uniform(0, length - moved)
            begin, stop = (begin, begin + moved) if dx + dy > 0 else (begin + moved, begin)
            seconds = (0.0, end)
        else:
            outside = (-radius - 2, brief.width + radius + 2) if dx else (-radius - 2, brief.height + radius + 2)
            inside = low + rng.uniform(0.3, 0.7) * length
            if act == "enter":
                begin, stop = outside[dx + dy < 0], inside
            else:
                begin, stop = inside, outside[dx + dy > 0]
            assert event is not None  # chosen for every act of this kind
            seconds = (event, min(event + _CROSSING, end))
            actor.shown = [(event, end)] if act == "enter" else [(0.0, seconds[1])]
        actor.path = [
            Point(second, place, y) if dx else Point(second, x, place)
            for second, place in zip(seconds, (begin, stop), strict=True)
        ]
    return actor


def _apart(one: Actor, other: Actor, seconds: float) -> bool:
    """Whether two actors touch at no quarter of a second at which both are shown."""
    distance = one.radius + other.radius + 2
    for quarter in range(round(4 * seconds)):
        second = quarter / 4
        if one.visible(second) and other.visible(second):
            (ax, ay), (bx, by) = one.place(second), other.place(second)
            if math.hypot(ax - bx, ay - by) < distance:
                return False
    return True


def _sign(brief: ClipRequest, count: int, changes: list[float]) -> tuple[Sign, float]:
    """A sign above the shapes with `count` different texts, and where it ends."""
    rng = brief.rng
    free = [colour for colour in _PLATE_COLOURS if not look_alike(colour, {brief.ground})]
    longest = brief.upto(4, 7)
    texts: dict[str, None] = {}
    for _ in range(50):
        if len(texts) == count:
            break
        texts[brief.words.digits(2, 3) if rng.random() < 0.4 else brief.words.word(2, longest).upper()] = None
    if len(texts) < count:
        raise DoesNotFit("texts")
    bottom = brief.height * rng.uniform(0.4, 0.5)
    width = brief.width * rng.uniform(0.85, 0.98)
    left = rng.uniform(1, brief.width - width - 1) if width < brief.width - 2 else 1.0
    box = (left, 2.0, min(left + width, brief.width - 1.0), bottom)
    times = [0.0, *changes]
    return Sign(list(zip(times, texts, strict=True)), rng.choice(free), box, rng.choice(PLATES[brief.split])), bottom
