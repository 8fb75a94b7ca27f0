"""Screens of programs, pages and dialogs, with an instruction and a box for every usable element."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from foveate.core.errors import FoveateError
from foveate.synthetic.augmentation import Colour, apart
from foveate.synthetic.page import Box, DoesNotFit, Page, RenderRequest
from foveate.synthetic.questions import choose, wordings
from foveate.synthetic.rendering import LARGEST_SIDE
from foveate.synthetic.sample import Character
from foveate.synthetic.words import SPLITS, split_of

KINDS = ("button", "menu", "tab", "field", "checkbox", "row", "icon")
SMALLEST = (224, 192)  # width and height in pixels
_ATTEMPTS = 60
_FEWEST = 4
_ACTIONS = (
    "Save Open Close Cancel Apply Send Delete Edit Copy Paste Print Export Import Login Search Next Back Finish Submit"
    " Upload Download Share Reply Forward Archive Refresh Reset Undo Redo Help File View Tools Window Format Insert"
    " Account Profile Settings Home News Inbox Drafts Photos Music Calendar Contacts Details History Security Network"
    " Display Sound Users Reports Orders Checkout Filter Sort Rename Move Install Update Restart Connect Subscribe"
)


@dataclass(slots=True)
class Element:
    """Something on a screen that can be used.

    Attributes:
        kind: of `KINDS`.
        name: what it says, or what its icon means; no other element of the screen has the same.
        box: in pixels; covers all that reacts, of a field without the name next to it.
        instruction: what a user would say, such as "Click the Save button."
    """

    kind: str
    name: str
    box: Box
    instruction: str


@dataclass(slots=True)
class Screen:
    """A rendered screen: RGB image, elements in drawing order, every character drawn, and how it was made."""

    image: Image.Image
    elements: list[Element]
    characters: list[Character]
    meta: dict[str, Any] = field(default_factory=dict)


class _Canvas:
    """What the parts of a screen are drawn with: colours, type, and the elements so far."""

    def __init__(self, brief: RenderRequest) -> None:
        rng = brief.rng
        dark = rng.random() < 0.3
        shades = range(20, 70) if dark else range(215, 256)
        self.ink: Colour = (rng.randint(215, 255) if dark else rng.randint(0, 50),) * 3
        self.desk, self.plate, self.well = (tuple(rng.choice(shades) for _ in range(3)) for _ in range(3))
        self.line: Colour = tuple((a + 2 * b) // 3 for a, b in zip(self.ink, self.plate, strict=True))
        self.accent: Colour = tuple(rng.randint(20, 235) for _ in range(3))
        self.on_accent = max(((0, 0, 0), (255, 255, 255)), key=lambda ink: apart(ink, self.accent))
        self.round = rng.choice((0, 0, 2, 4, 8))
        self.brief, self.rng = brief, rng
        self.page = Page(Image.new("RGB", (brief.width, brief.height), self.desk))
        self.cap = rng.uniform(brief.least_cap - 1, brief.least_cap + 3)
        self.face = brief.font().face(self.cap)
        self.high = round(self.cap * rng.uniform(2.3, 2.9))  # of a row, a button, a field
        self.gap = round(self.cap * rng.uniform(0.6, 1.2))
        self.elements: list[Element] = []
        self.names: set[str] = set()

    def name(self, width: float) -> str:
        """A name that is new on this screen and of this split, at most `width` pixels long."""
        words, rng = self.brief.words, self.rng
        for _ in range(30):
            action = rng.choice([word for word in _ACTIONS.split() if split_of(word) == self.brief.split])
            kind = rng.random()
            text = (
                action if kind < 0.5 else words.known(3, 9).title() if kind < 0.8 else f"{action} {words.known(3, 7)}"
            )
            if text.lower() not in self.names and self.face.width(text) <= width:
                self.names.add(text.lower())
                return text
        raise DoesNotFit

    def add(self, kind: str, name: str, box: Box) -> None:
        if box.right > self.brief.width or box.bottom > self.brief.height:
            raise DoesNotFit(name)
        wording = choose(self.rng, self.brief.split, wordings(f"screen.{kind}")).format(name=name)
        wording = wording if self.rng.random() < 0.5 else wording[0].lower() + wording[1:]
        wording = wording if self.rng.random() < 0.5 else wording.rstrip(".")
        self.elements.append(Element(kind, name, box, wording))

    def plane(self, box: Box, fill: Colour | None, outline: bool = True) -> None:
        if box.right - box.left < self.cap or box.bottom - box.top < self.cap:
            raise DoesNotFit
        pixels = (box.left, box.top, box.right - 1, box.bottom - 1)
        self.page.draw.rounded_rectangle(pixels, self.round, fill, self.line if outline else None)

    def write(self, x: float, box: Box, text: str, fill: Colour | None = None) -> float:
        """Text from x on, in the middle of a box's height."""
        return self.page.text(x, (box.top + box.bottom + self.cap) / 2, text, self.face, fill or self.ink)

    def button(self, box: Box, kind: str = "button", loud: bool = False) -> None:
        name = self.name(box.right - box.left - self.gap)
        self.plane(box, self.accent if loud else self.well)
        x = (box.left + box.right - self.face.width(name)) / 2
        self.write(x, box, name, self.on_accent if loud else None)
        self.add(kind, name, box)

    # Parts: each fills an area

    def buttons(self, area: Box) -> None:
        """A row of buttons, one of them in the colour of the theme."""
        count = min(self.rng.randint(1, 3), int((area.right - area.left) / (self.cap * 9)))
        width = (area.right - area.left) / max(count, 1)
        for i in range(count):
            left = area.left + i * width
            box = Box(round(left + self.gap / 2), area.top, round(left + width - self.gap / 2), area.top + self.high)
            self.button(box, loud=i == count - 1)

    def bar(self, area: Box, kind: str) -> None:
        """Names side by side: a menu bar or tabs."""
        self.plane(area, self.plate)
        x = area.left + self.gap
        for _ in range(self.rng.randint(2, 6)):
            name = self.name(self.cap * 9)
            width = self.face.width(name) + self.gap
            if x + width > area.right:
                break
            box = Box(round(x), area.top, round(x + width), area.bottom)
            self.write(x + self.gap / 2, area, name)
            self.add(kind, name, box)
            x += width + self.gap / 2

    def icons(self, area: Box) -> None:
        """Symbols side by side."""
        self.plane(area, self.plate)
        side, draw = self.high - 6, self.page.draw
        free = [name for name in _ICONS if name not in self.names]
        count = min(self.rng.randint(2, 7), len(free), int((area.right - area.left) // (side + self.gap)))
        for i, name in enumerate(self.rng.sample(free, max(count, 0))):
            left = round(area.left + self.gap / 2 + i * (side + self.gap))
            box = Box(left, area.top + 3, left + side, area.top + 3 + side)
            for shape in _ICONS[name]:
                points = [(box.left + side * x, box.top + side * y) for x, y in shape]
                if len(points) == 2:
                    draw.line(points, self.ink, 2)
                else:
                    draw.polygon(points, self.ink)
            self.names.add(name)
            self.add("icon", name, box)

    def rows(self, area: Box) -> None:
        """A list of names."""
        self.plane(area, self.well)
        for top in range(round(area.top) + 2, round(area.bottom) - self.high, self.high):
            box = Box(area.left + 2, top, area.right - 2, top + self.high)
            name = self.name(box.right - box.left - self.gap)
            self.write(box.left + self.gap / 2, box, name)
            self.page.draw.line((box.left, box.bottom - 1, box.right - 1, box.bottom - 1), self.line)
            self.add("row", name, box)

    def form(self, area: Box) -> None:
        """Fields with their names to the left, and boxes to tick."""
        middle = round(area.left + (area.right - area.left) * self.rng.uniform(0.35, 0.5))
        for top in range(round(area.top), round(area.bottom) - self.high, self.high + self.gap):
            row = Box(area.left, top, area.right, top + self.high)
            if self.rng.random() < 0.35:
                side = round(self.cap * 1.2)
                y = top + (self.high - side) // 2
                name = self.name(area.right - area.left - side - 2 * self.gap)
                self.plane(Box(area.left, y, area.left + side, y + side), self.well)
                if self.rng.random() < 0.5:
                    self.page.draw.rectangle((area.left + 3, y + 3, area.left + side - 4, y + side - 4), self.accent)
                end = self.write(area.left + side + self.gap / 2, row, name)
                self.add("checkbox", name, Box(area.left, top, round(end) + 1, top + self.high))
                continue
            name = self.name(middle - area.left - self.gap)
            self.write(area.left, row, name)
            box = Box(middle, top, area.right, top + self.high)
            self.plane(box, self.well)
            if self.rng.random() < 0.5:
                value = self.brief.words.word(3, 6)
                if self.face.width(value) < box.right - box.left - self.gap:
                    self.write(box.left + self.gap / 2, box, value)
            self.add("field", name, box)

    def prose(self, area: Box) -> None:
        """Text that cannot be clicked."""
        step = round(self.cap * 1.9)
        for top in range(round(area.top), round(area.bottom) - step, step):
            x, line = area.left, Box(area.left, top, area.right, top + step)
            while (word := self.brief.words.word(3, 8)) and x + self.face.width(word) < area.right:
                x = self.write(x, line, word) + self.cap * 0.6


def _cut(area: Box, high: float, pad: float = 0) -> tuple[Box, Box]:
    """A strip from the top of an area, and the rest below it."""
    strip = Box(area.left, area.top, area.right, area.top + high)
    return strip, area._replace(top=min(area.top + high + pad, area.bottom))


def _sides(area: Box, share: float, pad: float) -> tuple[Box, Box]:
    x = round(area.left + (area.right - area.left) * share)
    return area._replace(right=x - pad), area._replace(left=x)


def _program(c: _Canvas, area: Box) -> None:
    inset = c.rng.randint(0, min(c.brief.width, c.brief.height) // 12)
    area = Box(inset, inset, area.right - inset, area.bottom - inset)
    c.plane(area, c.plate)
    title, rest = _cut(area, c.high)
    c.plane(title, c.accent)
    c.write(title.left + c.gap, title, c.name((area.right - area.left) / 2), c.on_accent)
    menu, rest = _cut(rest, c.high)
    c.bar(menu, "menu")
    if c.rng.random() < 0.7:
        tools, rest = _cut(rest, c.high)
        c.icons(tools)
    body, foot = _cut(rest, rest.bottom - rest.top - c.high - 2 * c.gap, c.gap)
    body = Box(body.left + c.gap, body.top + c.gap, body.right - c.gap, body.bottom)
    left, right = _sides(body, c.rng.uniform(0.3, 0.45), c.gap)
    c.rng.choice((c.rows, c.rows, c.prose))(left)
    c.form(right)
    c.buttons(foot._replace(left=foot.left + (foot.right - foot.left) * c.rng.choice((0, 0.4))))


def _site(c: _Canvas, area: Box) -> None:
    head, rest = _cut(area, c.high, c.gap)
    c.bar(head, "tab")
    columns = max(1, min(3, int((area.right - area.left) // (c.cap * 14))))
    width = (area.right - area.left) / columns
    for i in range(columns):
        card = Box(round(i * width + c.gap), rest.top, round((i + 1) * width - c.gap), rest.bottom - c.high - 2 * c.gap)
        c.plane(card, c.plate)
        inside = Box(card.left + c.gap, card.top + c.gap, card.right - c.gap, card.bottom - c.gap)
        body, foot = _cut(inside, inside.bottom - inside.top - c.high)
        c.rng.choice((c.prose, c.prose, c.rows))(body)
        c.button(foot, loud=c.rng.random() < 0.5)
    c.icons(Box(area.left, area.bottom - c.high, area.right, area.bottom))


def _settings(c: _Canvas, area: Box) -> None:
    side, main = _sides(area, c.rng.uniform(0.3, 0.4), 0)
    c.rows(side)
    c.plane(main, c.plate)
    main = Box(main.left + c.gap, main.top + c.gap, main.right - c.gap, main.bottom - c.gap)
    form, foot = _cut(main, main.bottom - main.top - c.high)
    c.form(form)
    c.buttons(foot)


def _dialog(c: _Canvas, area: Box) -> None:
    top, rest = _cut(area, c.high)
    c.bar(top, "menu")
    dock = rest._replace(top=rest.bottom - c.high)
    c.icons(dock)
    width, height = rest.right - rest.left, dock.top - rest.top
    left, y = rest.left + round(width * c.rng.uniform(0.05, 0.2)), rest.top + round(height * c.rng.uniform(0.03, 0.1))
    box = Box(left, y, left + round(width * 0.75), y + round(height * 0.87))
    c.plane(box, c.plate)
    inside = Box(box.left + c.gap, box.top + c.gap, box.right - c.gap, box.bottom - c.gap)
    text, inside = _cut(inside, c.cap * 4, c.gap)
    c.prose(text)
    form, foot = _cut(inside, inside.bottom - inside.top - c.high)
    c.rng.choice((c.form, c.rows))(form)
    c.buttons(foot)


LAYOUTS: dict[str, dict[str, Callable[[_Canvas, Box], None]]] = {
    "train": {"program": _program, "site": _site, "settings": _settings},
    "heldout": {"dialog": _dialog},
}


def _lines(*points: tuple[float, ...]) -> list[list[tuple[float, float]]]:
    return [list(zip(shape[::2], shape[1::2], strict=True)) for shape in points]


# Known to both splits, like colours; coordinates from 0 to 1, two points a line, more an area.
_ICONS = {
    "close": _lines((0.15, 0.15, 0.85, 0.85), (0.15, 0.85, 0.85, 0.15)),
    "plus": _lines((0.5, 0.1, 0.5, 0.9), (0.1, 0.5, 0.9, 0.5)),
    "lines": _lines((0.1, 0.25, 0.9, 0.25), (0.1, 0.5, 0.9, 0.5), (0.1, 0.75, 0.9, 0.75)),
    "play": _lines((0.2, 0.1, 0.9, 0.5, 0.2, 0.9)),
    "stop": _lines((0.15, 0.15, 0.85, 0.15, 0.85, 0.85, 0.15, 0.85)),
    "pause": _lines((0.2, 0.1, 0.4, 0.1, 0.4, 0.9, 0.2, 0.9), (0.6, 0.1, 0.8, 0.1, 0.8, 0.9, 0.6, 0.9)),
    "left arrow": _lines((0.1, 0.5, 0.5, 0.15, 0.5, 0.85), (0.5, 0.5, 0.9, 0.5)),
    "right arrow": _lines((0.9, 0.5, 0.5, 0.15, 0.5, 0.85), (0.1, 0.5, 0.5, 0.5)),
    "house": _lines((0.1, 0.5, 0.5, 0.1, 0.9, 0.5), (0.22, 0.5, 0.78, 0.5, 0.78, 0.9, 0.22, 0.9)),
    "tick": _lines((0.1, 0.5, 0.4, 0.85), (0.4, 0.85, 0.9, 0.15)),
    "minus": _lines((0.1, 0.5, 0.9, 0.5)),
}


def render_screen(seed: int = 0, split: str = "train", size: tuple[int, int] | None = None) -> Screen:
    """Render a screen.

    The same arguments give the same screen wherever the same fonts and the same version of Pillow are installed; the
    global random state is left alone.

    Args:
        seed: any whole number.
        split: "train" or "heldout". Held out are font families (where two or more are found), words, the layout, and
            some wordings of instructions; icons are shared.
        size: width and height in pixels; None: 256 to 512 by 224 to 448, at random.

    Raises:
        FoveateError: an unknown split, or a size that is too small or too large.
    """
    if split not in SPLITS:
        raise FoveateError(f"unknown split {split!r}; possible are {', '.join(SPLITS)}.")
    if size is not None and (size[0] < SMALLEST[0] or size[1] < SMALLEST[1] or max(size) > LARGEST_SIDE):
        raise FoveateError(
            f"screens of {SMALLEST[0]} x {SMALLEST[1]} to {LARGEST_SIDE} x {LARGEST_SIDE} pixels can be rendered, got "
            f"{size[0]} x {size[1]}."
        )
    rng = random.Random(f"screen|{int(seed)}|{split}|{size}")
    width, height = size or (rng.randint(256, 512), rng.randint(224, 448))
    for attempt in range(_ATTEMPTS):
        canvas = _Canvas(RenderRequest(rng, split, width, height, 1.0, attempt))
        layout = rng.choice(list(LAYOUTS[split]))
        try:
            LAYOUTS[split][layout](canvas, Box(0, 0, width, height))
        except DoesNotFit:
            continue
        if len(canvas.elements) >= _FEWEST:
            meta = {"seed": seed, "split": split, "layout": layout, "attempt": attempt}
            return Screen(canvas.page.image, canvas.elements, canvas.page.characters, meta)
    raise RuntimeError(f"no screen could be laid out in {width} x {height} pixels (seed {seed}, split {split})")
