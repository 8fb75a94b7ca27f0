"""A scene: shapes on paths and a sign, as functions of the time in seconds."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import NamedTuple

#: What an actor can do.
ACTS = ("stay", "appear", "vanish", "visit", "blink", "move", "enter", "leave")
#: The acts in which an actor changes its place.
MOVING = ("move", "enter", "leave")


class Point(NamedTuple):
    """A place in pixels at a time in seconds."""

    second: float
    x: float
    y: float


@dataclass
class Actor:
    """A shape with its path.

    Attributes:
        kind: One of `shapes.KINDS`.
        colour: One of `shapes.COLOURS`.
        radius: Of the circle around it, in pixels.
        act: One of `ACTS`.
        path: Its centre, straight and at an even speed between the points.
        shown: Intervals in seconds in which it is drawn, without their ends.
        event: Second at which it appears, vanishes, enters or begins to leave; None for the other acts.
        direction: "left", "right", "up" or "down" of a moving one.
    """

    kind: str
    colour: str
    radius: float
    act: str
    path: list[Point]
    shown: list[tuple[float, float]]
    event: float | None = None
    direction: str | None = None

    @property
    def name(self) -> str:
        """Colour and kind."""
        return f"{self.colour} {self.kind}"

    @property
    def look(self) -> Point:
        """A place and time that show all of it: half-way where it moves, before it leaves, after it has entered.

        Of the others it is the time at which they appear.
        """
        first, last = self.path[0].second, self.path[-1].second
        at = {"move": (first + last) / 2, "enter": last, "leave": first}
        second = at.get(self.act, self.shown[0][0])
        return Point(second, *self.place(second))

    def visible(self, second: float) -> bool:
        """Whether it is drawn at a time."""
        return any(begin <= second < end for begin, end in self.shown)

    def place(self, second: float) -> tuple[float, float]:
        """Its centre in pixels at a time."""
        after = bisect_right(self.path, second, key=lambda point: point.second)
        if after == 0 or after == len(self.path):
            point = self.path[min(after, len(self.path) - 1)]
            return point.x, point.y
        one, other = self.path[after - 1], self.path[after]
        share = (second - one.second) / (other.second - one.second)
        return one.x + share * (other.x - one.x), one.y + share * (other.y - one.y)


@dataclass
class Sign:
    """A plate whose text changes.

    Attributes:
        texts: Text and the second from which on it is shown, the first from 0 on.
        colour: Name of the plate's colour.
        box: Left, top, right and bottom in pixels.
        plate: An outline of `signs.PLATES`.
    """

    texts: list[tuple[float, str]]
    colour: str
    box: tuple[float, float, float, float]
    plate: str

    def text(self, second: float) -> str:
        """What it says at a time."""
        return self.texts[bisect_right(self.texts, second, key=lambda text: text[0]) - 1][1]


@dataclass
class Scene:
    """What happens in a clip.

    Attributes:
        seconds: Its duration.
        actors: The shapes, in the order in which they are drawn.
        sign: The sign, if there is one.
    """

    seconds: float
    actors: list[Actor]
    sign: Sign | None = None

    @property
    def all_appear(self) -> bool:
        """Whether no shape is there from the beginning."""
        return all(actor.act in ("appear", "visit") for actor in self.actors)
