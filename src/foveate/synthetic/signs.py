"""Signs, plates, stickers and price tags: a little large type on a coloured plate."""

from __future__ import annotations

import math

from PIL import Image, ImageDraw

from foveate.synthetic.augmentation import apart, sheet
from foveate.synthetic.fonts import Font
from foveate.synthetic.page import DoesNotFit, Drawn, Page, RenderRequest
from foveate.synthetic.questions import ask, wordings
from foveate.synthetic.shapes import look_alike, on, tint
from foveate.synthetic.textpages import any_string

PLATES = {
    "train": ("box", "round_box", "disc", "octagon", "tag", "banner"),
    "heldout": ("pennant", "ellipse", "hexagon"),
}
TEXT = wordings("sign.text")
NUMBER = wordings("sign.number")
WORD = wordings("sign.word")
LINE = wordings("sign.line")
OF_COLOUR = wordings("sign.of_colour")
COLOUR = wordings("sign.colour")
_PLATE_COLOURS = ("red", "green", "blue", "yellow", "orange", "white", "black", "brown", "gray", "purple", "teal")


def plate_outline(
    plate: str, left: float, top: float, right: float, bottom: float
) -> tuple[list[tuple[float, float]], tuple[float, float]]:
    """Outline of a plate, and the part of its width and height that text may take."""
    cx, cy, w, h = (left + right) / 2, (top + bottom) / 2, (right - left) / 2, (bottom - top) / 2

    def around(count: int, turn: float = 0.0) -> list[tuple[float, float]]:
        return [
            (cx + w * math.cos(turn + 2 * math.pi * i / count), cy + h * math.sin(turn + 2 * math.pi * i / count))
            for i in range(count)
        ]

    if plate in ("disc", "ellipse"):
        return around(48), (0.74, 0.66)
    if plate == "octagon":
        return around(8, math.pi / 8), (0.8, 0.66)
    if plate == "hexagon":
        return around(6), (0.72, 0.66)
    if plate == "round_box":
        r = 0.3 * min(w, h)
        corners = [
            (right - r, bottom - r, 0),
            (left + r, bottom - r, 1),
            (left + r, top + r, 2),
            (right - r, top + r, 3),
        ]
        return [
            (x + r * math.cos(math.pi / 2 * (k + i / 6)), y + r * math.sin(math.pi / 2 * (k + i / 6)))
            for x, y, k in corners
            for i in range(7)
        ], (0.88, 0.86)
    if plate == "tag":
        return [(left, cy), (left + 0.3 * w, top), (right, top), (right, bottom), (left + 0.3 * w, bottom)], (
            0.68,
            0.84,
        )
    if plate == "banner":
        return [
            (left, top),
            (right, top),
            (right - 0.2 * w, cy),
            (right, bottom),
            (left, bottom),
            (left + 0.2 * w, cy),
        ], (0.72, 0.84)
    if plate == "pennant":
        return [(left, top), (right - 0.3 * w, top), (right, cy), (right - 0.3 * w, bottom), (left, bottom)], (
            0.7,
            0.84,
        )
    return [(left, top), (right, top), (right, bottom), (left, bottom)], (0.9, 0.86)


def _sign(
    brief: RenderRequest,
    page: Page,
    area: tuple[float, float, float, float],
    colour: str,
    lines: list[str],
    plate: str,
    font: Font,
) -> float:
    """Draw one sign within `area`; returns its cap height."""
    rng = brief.rng
    left, top, right, bottom = area
    if plate in ("disc", "octagon", "hexagon"):
        side = min(right - left, bottom - top) / 2
        cx, cy = (left + right) / 2, (top + bottom) / 2
        left, top, right, bottom = cx - side, cy - side, cx + side, cy + side
    outline, (across, down) = plate_outline(plate, left, top, right, bottom)
    fill = tint(rng, colour, brief.difficulty)
    ink = on(fill)
    if rng.random() < 0.15 and colour in ("white", "yellow"):
        ink = tint(rng, rng.choice(("red", "blue", "black")), 0.5)
    scale = 2
    mask = Image.new("L", (round(right - left) * scale + 2 * scale, round(bottom - top) * scale + 2 * scale), 0)
    ImageDraw.Draw(mask).polygon([((x - left + 1) * scale, (y - top + 1) * scale) for x, y in outline], fill=255)
    page.draw.bitmap((round(left) - 1, round(top) - 1), mask.reduce(scale), fill)
    if rng.random() < 0.4:
        cx, cy = (left + right) / 2, (top + bottom) / 2
        inner = [(cx + 0.94 * (x - cx), cy + 0.94 * (y - cy)) for x, y in outline]
        page.draw.line([*inner, inner[0]], fill=ink, width=1 + (right - left > 150))
    wide, high = (right - left) * across, (bottom - top) * down
    fits = min(wide / max(font.width(line, 1.05) for line in lines), high / (1.75 * len(lines) - 0.3))
    if fits < brief.floor(max(6.0, brief.least_cap * (1 - 0.02 * brief.attempt))):
        raise DoesNotFit("sign")
    cap = fits * rng.uniform(0.7, 1) if fits > 12 else fits
    face = font.face(min(cap, 110))
    middle_x = (left + right) / 2
    if plate in ("tag", "pennant"):
        middle_x += (0.15 if plate == "tag" else -0.15) * (right - left) / 2
    y = (top + bottom) / 2 - (1.75 * len(lines) - 0.75) * cap / 2
    for line in lines:
        page.text_centred(middle_x, y + cap, line, face, ink)
        y += 1.75 * cap
    page.contrast = min(page.contrast, apart(fill, ink))
    return cap


def _scene(brief: RenderRequest, taken: set[str]) -> Page:
    """Something behind the sign: a plain, shaded or two-coloured ground whose colour no sign has."""
    rng = brief.rng
    free = [c for c in ("white", "gray", "cyan", "green", "brown", "pink") if not look_alike(c, taken)]
    if not free:
        raise DoesNotFit("no colour left for the ground")
    name = rng.choice(free)
    ground = tint(rng, name, brief.difficulty)
    page = Page(sheet(rng, brief.width, brief.height, ground, brief.difficulty))
    if rng.random() < 0.4 * brief.difficulty:
        y = brief.height * rng.uniform(0.5, 0.9)
        other = tuple(max(0, v - rng.randint(15, 60)) for v in ground)
        page.draw.rectangle((0, y, brief.width, brief.height), fill=other)
    return page


def _text(brief: RenderRequest, numeric: bool | None = None) -> str:
    """The text of a line of a sign."""
    rng, words = brief.rng, brief.words
    longest = max(3, min(brief.upto(6, 9), round(brief.width / brief.least_cap) - brief.attempt // 2))
    if numeric is True:
        return words.digits(1, min(5, longest))
    if numeric is False:
        word = words.word(3, longest)
        return word.upper() if rng.random() < 0.6 else word.title()
    return any_string(words, longest)


def sign(brief: RenderRequest) -> tuple[Page, Drawn]:
    """What a sign says: all of it, its number, its word, one line, or the one of two signs that has a colour."""
    rng = brief.rng
    plates = PLATES[brief.split]
    kind = rng.choice(("text", "number", "word", "line", "of_colour", "colour", "text"))
    if kind == "of_colour" and max(brief.width, brief.height) < 128:
        kind = "text"
    font = brief.font()
    count = 2 if kind == "of_colour" else 1
    colours = rng.sample(_PLATE_COLOURS, count)
    if look_alike(colours[0], set(colours[1:])):
        raise DoesNotFit("two colours that look alike")
    page = _scene(brief, set(colours))
    width, height = brief.width, brief.height
    areas = [(0.0, 0.0, float(width), float(height))]
    if count == 2:
        areas = [(0.0, 0.0, width / 2, float(height)), (width / 2, 0.0, float(width), float(height))]
        if height > width:
            areas = [(0.0, 0.0, float(width), height / 2), (0.0, height / 2, float(width), float(height))]
    lines: list[str] = []
    for area, colour in zip(areas, colours, strict=True):
        wide, high = area[2] - area[0], area[3] - area[1]
        share = rng.uniform(0.6, 0.96) if brief.attempt < 8 else 0.97
        w, h = (wide - 6) * share, (high - 6) * rng.uniform(max(0.4, share - 0.3), share)
        left, top = area[0] + 3 + rng.random() * (wide - 6 - w), area[1] + 3 + rng.random() * (high - 6 - h)
        if kind in ("number", "word"):
            lines = [_text(brief, True), _text(brief, False)]
            rng.shuffle(lines)
            if rng.random() < 0.4 or brief.attempt > 6:
                lines = [line for line in lines if line.isdigit() == (kind == "number")]
        elif kind == "line":
            lines = [_text(brief) for _ in range(rng.randint(2, max(2, brief.upto(2, 4))))]
        elif kind == "of_colour":
            lines = [_text(brief)]
        else:
            lines = [_text(brief) for _ in range(rng.randint(1, max(1, brief.upto(1, 3))))]
        cap = _sign(brief, page, (left, top, left + w, top + h), colour, lines, rng.choice(plates), font)
    meta = {"kind": kind, "cap": cap}
    if kind in ("number", "word"):
        answer = next(line for line in lines if line.isdigit() == (kind == "number"))
        wordings = NUMBER if kind == "number" else WORD
        return page, Drawn(ask(rng, brief.split, wordings), answer, meta)
    if kind == "line":
        n = rng.randrange(len(lines))
        return page, Drawn(ask(rng, brief.split, LINE, nth=("first", "second", "third", "fourth")[n]), lines[n], meta)
    if kind == "of_colour":
        return page, Drawn(ask(rng, brief.split, OF_COLOUR, colour=colours[1]), lines[0], meta)
    if kind == "colour":
        return page, Drawn(ask(rng, brief.split, COLOUR), colours[0], meta)
    return page, Drawn(ask(rng, brief.split, TEXT), " ".join(lines), meta)
