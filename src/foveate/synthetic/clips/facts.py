"""Questions about a scene: all that can be asked about it and has one right answer."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

from foveate.synthetic.clips.scene import MOVING, Actor, Point, Scene
from foveate.synthetic.questions import choose, wordings
from foveate.synthetic.sample import Character

_WORDINGS = {
    name: wordings(f"clip.{name}")
    for name in (
        "order",
        "first",
        "last",
        "count",
        "shapes",
        "direction",
        "sign.before",
        "sign.after",
        "sign.first",
        "sign.last",
        "when.appear",
        "when.vanish",
        "when.sign",
        "moving",
        "blink",
        "appear",
        "vanish",
        "enter",
        "leave",
    )
}


class Fact(NamedTuple):
    """A question about a scene.

    `task`: the task that it belongs to; `what`: a section of the wordings, without `clip.`; `slots`: what it names;
    `answer`: the right answer; `about`: names of the shapes that the answer tells something of; `places`: what shows
    the answer, one place for all of it or one for each of its characters, none where it is in no single place.
    """

    task: str
    what: str
    slots: dict[str, str]
    answer: str
    about: tuple[str, ...] = ()
    places: tuple[Point, ...] = ()

    def ask(self, rng: random.Random, split: str) -> str:
        """The question in one of its wordings."""
        question = choose(rng, split, _WORDINGS[self.what]).format(**self.slots)
        style = rng.random()
        if style < 0.1:
            question = question.rstrip("?.")
        return question[0].lower() + question[1:] if rng.random() < 0.2 else question


def facts(rng: random.Random, scene: Scene, letters: dict[str, list[Character]]) -> list[Fact]:
    """All that can be asked about a scene; of pairs, in a random order.

    `letters`: the characters of each text of its sign, as they were drawn.
    """
    actors = scene.actors
    return [
        *_orders(rng, scene),
        *([Fact("clip_count", "count" if scene.all_appear else "shapes", {}, str(len(actors)))] if actors else ()),
        *_movements(actors),
        *_moments(scene),
        *_changes(actors),
        *_texts(scene, letters),
    ]


def _begin(actor: Actor) -> float:
    return actor.shown[0][0]


def _orders(rng: random.Random, scene: Scene) -> Iterator[Fact]:
    """Which of two shapes came first, and which came first and last of all."""
    coming = sorted((actor for actor in scene.actors if actor.act in ("appear", "visit")), key=_begin)
    for place, one in enumerate(coming):
        for other in coming[place + 1 :]:
            a, b = rng.sample((one.name, other.name), 2)
            yield Fact("clip_order", "order", {"a": a, "b": b}, one.name, (one.name, other.name), (one.look,))
    if len(coming) > 1 and scene.all_appear:
        yield Fact("clip_order", "first", {}, coming[0].name, (coming[0].name,), (coming[0].look,))
        if all(len(actor.shown) == 1 for actor in coming):
            yield Fact("clip_order", "last", {}, coming[-1].name, (coming[-1].name,), (coming[-1].look,))


def _movements(actors: list[Actor]) -> Iterator[Fact]:
    """What moves, and in which direction."""
    moving = [actor for actor in actors if actor.act in MOVING]
    for actor in moving:
        if actor.direction is not None:
            yield Fact(
                "clip_direction", "direction", {"what": actor.name}, actor.direction, (actor.name,), (actor.look,)
            )
    if len(moving) == 1 and len(actors) > 1:
        yield Fact("clip_moving", "moving", {}, moving[0].name, (moving[0].name,), (moving[0].look,))


def _moments(scene: Scene) -> Iterator[Fact]:
    """When something happened, in whole seconds from the beginning."""
    for actor in scene.actors:
        if actor.act in ("appear", "vanish") and actor.event is not None:
            answer = str(int(actor.event))
            place = Point(actor.event, *actor.place(actor.event))
            yield Fact("clip_when", f"when.{actor.act}", {"what": actor.name}, answer, (actor.name,), (place,))
    if scene.sign is not None and len(scene.sign.texts) == 2:
        second, (left, top, right, bottom) = scene.sign.texts[1][0], scene.sign.box
        place = Point(second, (left + right) / 2, (top + bottom) / 2)
        yield Fact("clip_when", "when.sign", {}, str(int(second)), (), (place,))


#: Acts that a viewer could mean by the same question.
_ALIKE = {
    "blink": {"blink"},
    "appear": {"appear", "enter", "blink", "visit"},
    "enter": {"appear", "enter", "blink", "visit"},
    "vanish": {"vanish", "leave", "blink", "visit"},
    "leave": {"vanish", "leave", "blink", "visit"},
}


def _changes(actors: list[Actor]) -> Iterator[Fact]:
    """Which shape blinks, appears, disappears, enters or leaves."""
    for act, alike in _ALIKE.items():
        acting = [actor for actor in actors if actor.act in alike]
        if len(acting) == 1 and acting[0].act == act and len(actors) > 1:
            yield Fact("clip_change", act, {}, acting[0].name, (acting[0].name,), (acting[0].look,))


def _texts(scene: Scene, letters: dict[str, list[Character]]) -> Iterator[Fact]:
    """What the sign said."""
    if scene.sign is None:
        return
    texts = scene.sign.texts
    kinds = ("sign.before", "sign.after") if len(texts) == 2 else ("sign.first", "sign.last")
    for kind, (second, text) in zip(kinds, (texts[0], texts[-1]), strict=True):
        places = tuple(Point(second, character.x, character.y) for character in letters[text])
        yield Fact("clip_sign", kind, {}, text, (), places)
