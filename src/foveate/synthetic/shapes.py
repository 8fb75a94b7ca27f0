"""Scattered shapes: questions on count, colour, kind, existence and position."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

from foveate.synthetic.augmentation import Colour, luminance, sheet
from foveate.synthetic.page import DoesNotFit, Drawn, Page, RenderRequest
from foveate.synthetic.questions import ask, wordings, yes_no
from foveate.synthetic.sample import Character

# Name: centre of the colour; the drawn one is near it.
COLOURS: dict[str, Colour] = {
    "red": (215, 35, 35),
    "green": (35, 150, 50),
    "blue": (35, 70, 215),
    "yellow": (245, 215, 30),
    "orange": (245, 135, 20),
    "purple": (125, 45, 165),
    "pink": (250, 140, 190),
    "brown": (120, 70, 30),
    "black": (18, 18, 18),
    "white": (250, 250, 250),
    "gray": (128, 128, 128),
    "teal": (0, 128, 128),
    "cyan": (60, 215, 235),
}
KINDS = (
    "circle",
    "square",
    "triangle",
    "rectangle",
    "star",
    "diamond",
    "hexagon",
    "cross",
    "ellipse",
    "pentagon",
    "heart",
    "arrow",
)
_EASY_KINDS, _EASY_COLOURS = 4, ("red", "green", "blue", "yellow", "black", "gray", "brown", "teal")
# Shapes and colours that a viewer could take for one another never share a picture.
_LOOK_ALIKE = ({"rectangle", "square"}, {"circle", "ellipse"}, {"pentagon", "hexagon"}, {"square", "diamond"})
_NEAR = (
    {"teal", "cyan"},
    {"teal", "green"},
    {"teal", "blue"},
    {"red", "orange"},
    {"orange", "yellow"},
    {"orange", "brown"},
    {"red", "brown"},
    {"pink", "purple"},
    {"cyan", "blue"},
    {"white", "gray"},
    {"black", "gray"},
    {"red", "pink"},
)

_OUTLINES: dict[str, list[tuple[float, float]]] = {}


def _regular(corners: int, turn: float = -90) -> list[tuple[float, float]]:
    return [
        (math.cos(math.radians(turn + 360 * i / corners)), math.sin(math.radians(turn + 360 * i / corners)))
        for i in range(corners)
    ]


def _outline(kind: str) -> list[tuple[float, float]]:
    """Corners of a shape inside the circle of radius 1."""
    if kind not in _OUTLINES:
        _OUTLINES.update(
            circle=_regular(40),
            ellipse=[(x, 0.55 * y) for x, y in _regular(40)],
            square=_regular(4, 45),
            diamond=[(0, -1), (0.62, 0), (0, 1), (-0.62, 0)],
            rectangle=[(-0.93, -0.42), (0.93, -0.42), (0.93, 0.42), (-0.93, 0.42)],
            triangle=_regular(3),
            pentagon=_regular(5),
            hexagon=_regular(6, 0),
            star=[
                (x * (1 if i % 2 == 0 else 0.42), y * (1 if i % 2 == 0 else 0.42))
                for i, (x, y) in enumerate(_regular(10))
            ],
            cross=[
                (-0.3, -0.95),
                (0.3, -0.95),
                (0.3, -0.3),
                (0.95, -0.3),
                (0.95, 0.3),
                (0.3, 0.3),
                (0.3, 0.95),
                (-0.3, 0.95),
                (-0.3, 0.3),
                (-0.95, 0.3),
                (-0.95, -0.3),
                (-0.3, -0.3),
            ],
            heart=[
                (
                    0.058 * 16 * math.sin(t) ** 3,
                    -0.058 * (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)),
                )
                for t in (2 * math.pi * i / 40 for i in range(40))
            ],
            arrow=[(-0.95, -0.25), (0.1, -0.25), (0.1, -0.65), (0.97, 0), (0.1, 0.65), (0.1, 0.25), (-0.95, 0.25)],
        )
    return _OUTLINES[kind]


@dataclass
class Shape:
    """One shape: kind, name of the colour, centre and radius in pixels."""

    kind: str
    colour: str
    x: float
    y: float
    radius: float

    def __str__(self) -> str:
        return f"{self.colour} {self.kind}"


def tint(rng: random.Random, name: str, difficulty: float) -> Colour:
    """A random colour that is clearly `name`."""
    spread = round(4 + 10 * difficulty)
    return tuple(min(255, max(0, value + rng.randint(-spread, spread))) for value in COLOURS[name])


def silhouette(kind: str, radius: float, turn: float = 0.0) -> tuple[Image.Image, list[tuple[float, float]]]:
    """Matte of a shape with smooth edges, a square with the centre in its middle, and the corners in it.

    Args:
        kind: One of `KINDS`.
        radius: Of the circle around it, in pixels.
        turn: Degrees by which it is turned.
    """
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    side, scale = math.ceil(2 * radius) + 4, 3
    points = [
        (
            (x * cos - y * sin) * radius * scale + side * scale / 2,
            (x * sin + y * cos) * radius * scale + side * scale / 2,
        )
        for x, y in _outline(kind)
    ]
    mask = Image.new("L", (side * scale, side * scale), 0)
    ImageDraw.Draw(mask).polygon(points, fill=255)
    return mask.reduce(scale), [(px / scale, py / scale) for px, py in points]


def paint(rng: random.Random, page: Page, shape: Shape, difficulty: float) -> None:
    """Draw one shape with smooth edges."""
    page.things.append(Character(shape.kind, shape.x, shape.y))
    turn = 0.0
    if shape.kind not in ("circle", "diamond", "square", "heart") or rng.random() < 0.15 * difficulty:
        turn = rng.uniform(-25, 25) * difficulty if shape.kind not in ("diamond", "square") else rng.uniform(-8, 8)
    mask, corners = silhouette(shape.kind, shape.radius, turn)
    corner = (round(shape.x - mask.width / 2), round(shape.y - mask.height / 2))
    colour = tint(rng, shape.colour, difficulty)
    page.draw.bitmap(corner, mask, colour)
    if rng.random() < 0.15 * difficulty and shape.kind in ("circle", "square", "rectangle", "ellipse"):
        edge = tuple(v // 2 for v in colour)
        page.draw.line([(corner[0] + px, corner[1] + py) for px, py in [*corners, corners[0]]], fill=edge)


def _clash(groups: tuple[set[str], ...], name: str, others: set[str]) -> bool:
    return any(name in group and (group - {name}) & others for group in groups)


def look_alike(colour: str, others: set[str]) -> bool:
    """Whether `colour` is one of `others` or too similar to one."""
    return colour in others or _clash(_NEAR, colour, others)


def looks_like(kind: str, others: set[str]) -> bool:
    """Whether a shape of `kind` could be taken for one of `others`."""
    return _clash(_LOOK_ALIKE, kind, others)


def _palette(brief: RenderRequest, ground: str) -> tuple[list[str], list[str]]:
    """Kinds and colours that may appear together on a ground of the named colour."""
    rng, d = brief.rng, brief.difficulty
    every_kind = list(KINDS[:_EASY_KINDS] if rng.random() > d else KINDS)
    every_colour = list(_EASY_COLOURS if rng.random() > d else COLOURS)
    rng.shuffle(every_kind)
    rng.shuffle(every_colour)
    kinds: list[str] = []
    for kind in every_kind:
        if not _clash(_LOOK_ALIKE, kind, set(kinds)):
            kinds.append(kind)
    colours: list[str] = []
    for colour in every_colour:
        if not look_alike(colour, {ground, *colours}):
            colours.append(colour)
    return kinds[: rng.randint(2, 5)], colours[: rng.randint(2, 6)]


def _ground(brief: RenderRequest) -> tuple[str, Colour]:
    """Name ("" when it is none of the named) and colour of the ground."""
    rng = brief.rng
    kind = rng.random()
    if kind < 0.5 or brief.difficulty == 0:
        return "white", (rng.randint(242, 255),) * 3
    if kind < 0.6:
        return "black", (rng.randint(0, 18),) * 3
    if kind < 0.75:
        return rng.choice([(name, tint(rng, name, 0.5)) for name in ("yellow", "blue", "gray", "cyan", "pink", "teal")])
    return "white", tuple(rng.randint(205, 250) for _ in range(3))


def _scatter(brief: RenderRequest, wanted: list[tuple[str, str]], low: float = 0.07, high: float = 0.22) -> list[Shape]:
    """Places for shapes that neither touch one another nor the edge."""
    rng = brief.rng
    side = min(brief.width, brief.height)
    # A picture much longer than wide has space for more along its length.
    usual = min(side * rng.uniform(low, high), math.sqrt(brief.width * brief.height / max(1, len(wanted))) * 0.33)
    shapes: list[Shape] = []
    for kind, colour in wanted:
        for _ in range(60):
            radius = max(5.0, usual * rng.uniform(0.7, 1.25))
            if 2 * radius + 6 > side:
                continue
            x, y = rng.uniform(radius + 2, brief.width - radius - 2), rng.uniform(radius + 2, brief.height - radius - 2)
            if all(math.hypot(x - s.x, y - s.y) > radius + s.radius + 2 for s in shapes):
                shapes.append(Shape(kind, colour, x, y, radius))
                break
            usual *= 0.985
        else:
            raise DoesNotFit("shapes")
    return shapes


def _picture(brief: RenderRequest, ground: Colour, shapes: list[Shape]) -> Page:
    page = Page(sheet(brief.rng, brief.width, brief.height, ground, brief.difficulty * 0.6))
    for shape in shapes:
        paint(brief.rng, page, shape, brief.difficulty)
    return page


def _plural(kind: str) -> str:
    return {"cross": "crosses"}.get(kind, kind + "s")


HOW_MANY = wordings("shape.how_many")
COLOUR_OF = wordings("shape.colour_of")
COLOUR_OF_ONLY = wordings("shape.colour_of_only")
KIND_OF = wordings("shape.kind_of")
KIND_OF_ONLY = wordings("shape.kind_of_only")
EXISTS = wordings("shape.exists")
NOT_EXISTS = wordings("shape.not_exists")


def _a(question: str) -> str:
    """The question with "an" before vowels."""
    for vowel in "aeio":
        question = question.replace(f" a {vowel}", f" an {vowel}")
    return question


def _further(brief: RenderRequest, ground: str, shapes: list[Shape]) -> tuple[tuple[str, str], ...]:
    """Further questions about the same picture, if more than the usual three are wanted."""
    rng, split = brief.rng, brief.split
    if brief.most <= 3:
        return ()
    kinds, colours = [s.kind for s in shapes], [s.colour for s in shapes]
    shown = {*colours, ground}
    other_kinds = [k for k in KINDS if k not in kinds and not _clash(_LOOK_ALIKE, k, set(kinds))]
    other_colours = [c for c in COLOURS if c not in shown and not _clash(_NEAR, c, shown)]
    asked: list[tuple[str, str]] = []
    for _ in range(brief.most - 1):
        way = rng.choice(("count", "colour", "kind", "exists", "exists"))
        shape = rng.choice(shapes) if shapes else None
        if way == "count" and shape is not None:
            how = rng.choice(("all", "kind", "colour"))
            count = {"all": len(shapes), "kind": kinds.count(shape.kind), "colour": colours.count(shape.colour)}[how]
            what = {"all": "shapes", "kind": _plural(shape.kind), "colour": f"{shape.colour} shapes"}[how]
            asked.append((ask(rng, split, HOW_MANY, what=what), str(count)))
        elif way == "colour" and shape is not None and kinds.count(shape.kind) == 1:
            asked.append((ask(rng, split, COLOUR_OF, kind=shape.kind), shape.colour))
        elif way == "kind" and shape is not None and colours.count(shape.colour) == 1:
            asked.append((ask(rng, split, KIND_OF, colour=shape.colour), shape.kind))
        elif way == "exists":
            truth = rng.random() < 0.5
            if (truth and shape is None) or (not truth and not (other_kinds and other_colours)):
                continue
            if truth and shape is not None:
                what = rng.choice((shape.kind, f"{shape.colour} shape", str(shape)))
            else:
                what = rng.choice((rng.choice(other_kinds), f"{rng.choice(other_colours)} shape"))
            asked.append((_a(ask(rng, split, EXISTS, what=what)), yes_no(truth)))
    return tuple(dict.fromkeys(asked))


def count_shapes(brief: RenderRequest) -> tuple[Page, Drawn]:
    """How many shapes there are: all, of one kind, of one colour, of one kind and colour."""
    rng = brief.rng
    name, ground = _ground(brief)
    kinds, colours = _palette(brief, name)
    answer = rng.randint(0, brief.upto(3, 9)) if rng.random() < 0.95 else 0
    others = rng.randint(0, brief.upto(2, 6))
    how = rng.choice(("all", "kind", "colour", "both", "kind"))
    kind, colour = rng.choice(kinds), rng.choice(colours)
    if how == "all":
        answer = max(1, answer)
        wanted = [(rng.choice(kinds), rng.choice(colours)) for _ in range(answer)]
        what = rng.choice(("shapes", "objects", "figures", "shapes"))
    else:
        wanted = []
        for _ in range(answer):
            wanted.append(
                (kind if how != "colour" else rng.choice(kinds), colour if how != "kind" else rng.choice(colours))
            )
        pairs = [(k, c) for k in kinds for c in colours]
        if how == "kind":
            pairs = [p for p in pairs if p[0] != kind]
        elif how == "colour":
            pairs = [p for p in pairs if p[1] != colour]
        else:
            pairs = [p for p in pairs if p != (kind, colour)]
        wanted += [rng.choice(pairs) for _ in range(others if answer else max(1, others))]
        what = {"kind": _plural(kind), "colour": f"{colour} shapes", "both": f"{colour} {_plural(kind)}"}[how]
    rng.shuffle(wanted)
    shapes = _scatter(brief, wanted)
    page = _picture(brief, ground, shapes)
    meta = {"kind": how, "shapes": [str(s) for s in shapes]}
    return page, Drawn(ask(rng, brief.split, HOW_MANY, what=what), str(answer), meta, _further(brief, name, shapes))


def shape_colour(brief: RenderRequest) -> tuple[Page, Drawn]:
    """The colour of the only shape of its kind."""
    rng = brief.rng
    name, ground = _ground(brief)
    kinds, colours = _palette(brief, name)
    kind, colour = kinds[0], rng.choice(colours)
    others = rng.randint(0, brief.upto(1, 5))
    wanted = [(kind, colour)] + [(rng.choice(kinds[1:]), rng.choice(colours)) for _ in range(others)]
    shapes = _scatter(brief, wanted, 0.1, 0.4 if not others else 0.25)
    page = _picture(brief, ground, shapes)
    wordings = COLOUR_OF_ONLY if not others and rng.random() < 0.5 else COLOUR_OF
    meta = {"shapes": [str(s) for s in shapes]}
    return page, Drawn(ask(rng, brief.split, wordings, kind=kind), colour, meta, _further(brief, name, shapes))


def shape_kind(brief: RenderRequest) -> tuple[Page, Drawn]:
    """The kind of the only shape of its colour."""
    rng = brief.rng
    name, ground = _ground(brief)
    kinds, colours = _palette(brief, name)
    kind, colour = rng.choice(kinds), colours[0]
    others = rng.randint(0, brief.upto(1, 5))
    wanted = [(kind, colour)] + [(rng.choice(kinds), rng.choice(colours[1:])) for _ in range(others)]
    shapes = _scatter(brief, wanted, 0.1, 0.4 if not others else 0.25)
    page = _picture(brief, ground, shapes)
    wordings = KIND_OF_ONLY if not others and rng.random() < 0.5 else KIND_OF
    meta = {"shapes": [str(s) for s in shapes]}
    return page, Drawn(ask(rng, brief.split, wordings, colour=colour), kind, meta, _further(brief, name, shapes))


def shape_exists(brief: RenderRequest) -> tuple[Page, Drawn]:
    """Whether a shape, a colour or both together are there."""
    rng = brief.rng
    truth = rng.random() < 0.5
    name, ground = _ground(brief)
    kinds, colours = _palette(brief, name)
    wanted = [(rng.choice(kinds), rng.choice(colours)) for _ in range(rng.randint(1, brief.upto(2, 6)))]
    how = rng.choice(("kind", "colour", "both"))
    negated = rng.random() < 0.12
    present = truth != negated
    there = set(wanted)
    every = [k for k in KINDS if not _clash(_LOOK_ALIKE, k, {w[0] for w in wanted})]
    if how == "kind":
        options = [k for k in (kinds if present else every) if any(w[0] == k for w in wanted) == present]
    elif how == "colour":
        shown = {w[1] for w in wanted} | {name}
        far = [c for c in COLOURS if c not in shown and not _clash(_NEAR, c, shown)]
        options = [f"{c} shape" for c in (sorted({w[1] for w in wanted}) if present else far)]
    else:
        options = [f"{c} {k}" for k in kinds for c in colours if ((k, c) in there) == present]
    if not options:
        raise DoesNotFit("no such shape")
    what = rng.choice(options)
    shapes = _scatter(brief, wanted, 0.1, 0.25)
    page = _picture(brief, ground, shapes)
    question = _a(ask(rng, brief.split, NOT_EXISTS if negated else EXISTS, what=what))
    meta = {"shapes": [f"{c} {k}" for k, c in wanted], "kind": how}
    return page, Drawn(question, yes_no(truth), meta, _further(brief, name, shapes))


WHERE = {way: wordings(f"shape.where.{way}") for way in ("left", "right", "above", "below")}
WHICH_SIDE = {way: wordings(f"shape.which_side.{way}") for way in ("horizontal", "vertical")}
MOST = {way: wordings(f"shape.most.{way}") for way in ("left", "right", "above", "below")}


def shape_position(brief: RenderRequest) -> tuple[Page, Drawn]:
    """Where one shape is from another: yes or no, a side, or the outermost shape."""
    rng = brief.rng
    name, ground = _ground(brief)
    kinds, colours = _palette(brief, name)
    rng.shuffle(kinds)
    chosen = kinds[: rng.randint(2, max(2, min(len(kinds), brief.upto(2, 5))))]
    shapes = _scatter(brief, [(kind, rng.choice(colours)) for kind in chosen], 0.09, 0.2)
    a, b = rng.sample(shapes, 2)
    page = _picture(brief, ground, shapes)
    names = [s.kind if rng.random() < 0.6 else str(s) for s in (a, b)]
    dx, dy = a.x - b.x, a.y - b.y
    flat = abs(dx) > abs(dy)
    clear = 0.6 * (a.radius + b.radius)
    if max(abs(dx), abs(dy)) < clear:
        raise DoesNotFit("not clearly next to")
    true_way = ("left" if dx < 0 else "right") if flat else ("above" if dy < 0 else "below")
    how = rng.random()
    if how < 0.5:
        truth = rng.random() < 0.5
        way = true_way if truth else {"left": "right", "right": "left", "above": "below", "below": "above"}[true_way]
        return page, Drawn(ask(rng, brief.split, WHERE[way], a=names[0], b=names[1]), yes_no(truth), {"kind": "yes_no"})
    if how < 0.8 or len(shapes) < 2:
        wordings = WHICH_SIDE["horizontal" if flat else "vertical"]
        return page, Drawn(ask(rng, brief.split, wordings, a=names[0], b=names[1]), true_way, {"kind": "side"})
    way = rng.choice(sorted(MOST))
    key = {"left": lambda s: s.x, "right": lambda s: -s.x, "above": lambda s: s.y, "below": lambda s: -s.y}[way]
    ranked = sorted(shapes, key=key)
    if key(ranked[1]) - key(ranked[0]) < 0.5 * max(ranked[0].radius, ranked[1].radius):
        raise DoesNotFit("two at the edge")
    return page, Drawn(ask(rng, brief.split, MOST[way]), ranked[0].kind, {"kind": "outermost"})


def on(colour: Colour) -> Colour:
    """Black or white, whichever reads better on `colour`."""
    return (15, 15, 15) if luminance(colour) > 140 else (250, 250, 250)
