"""Fonts found on this machine, checked for printable ASCII, with cached glyphs.

Looked for at run time: the DejaVu family inside the matplotlib package, the usual font folders of the system, and
last the font that Pillow carries itself. Nothing is downloaded and none is required: with no font file at all
everything is drawn in Pillow's own font.
"""

from __future__ import annotations

import importlib.util
import os
import re
import zlib
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageFont

ASCII = "".join(chr(code) for code in range(33, 127))
REFERENCE_SIZE = 64  # advances are measured once at this size and scaled

# Faces without text in them, or whose ASCII is mapped to something else (Computer Modern's maths faces).
_NOT_TEXT = re.compile(
    r"(^cm[a-z]+\d)|symbol|dingbat|emoji|ornament|braille|lastresort|siz(one|two|three|four|five)|nonuni"
    r"|mathematics|music|chancery|initials|outline|shadow|icons|keyboard|d050000l|z003|tex gyre",
    re.IGNORECASE,
)
# Strokes of well under a pixel at the sizes drawn here.
_TOO_THIN = re.compile(r"thin|hairline|extra ?light|ultra ?light|dotted", re.IGNORECASE)
_WIDTH_AND_WEIGHT = re.compile(
    r"\b(semi|demi|extra|ultra)?(condensed|narrow|expanded|light|medium|regular|book|bold|semibold|black|heavy|demi"
    r"|display|text|caption|subhead|ui|thin|wide|semcond|cond|oblique|italic)\b|\d+pt",
    re.IGNORECASE,
)


class Glyph(NamedTuple):
    """Ink of one character: a grey matte, where its corner lies from the pen, and the ink's box from the pen."""

    matte: Image.Image | None
    left: int
    top: int
    ink: tuple[int, int, int, int]


class Face:
    """A font at one size in pixels, drawing glyph by glyph so that the place of every character is known."""

    def __init__(self, font: Font, size: float) -> None:
        self.size = size
        self._pil = font.open(size)
        self._glyphs: dict[tuple[str, int], Glyph] = {}
        self._advances: dict[str, float] = {}
        self._kerns: dict[str, float] = {}
        top, bottom = self._pil.getbbox("H", anchor="ls")[1::2]
        self.cap = int(bottom - top)

    def advance(self, char: str) -> float:
        """How far the pen moves after `char`, in pixels."""
        found = self._advances.get(char)
        if found is None:
            found = self._advances[char] = self._pil.getlength(char)
        return found

    def kern(self, pair: str) -> float:
        """How much closer (negative) or farther the second of two characters stands."""
        found = self._kerns.get(pair)
        if found is None:
            found = self._pil.getlength(pair) - self.advance(pair[0]) - self.advance(pair[1])
            self._kerns[pair] = found
        return found

    def pens(self, text: str, spacing: float = 0.0) -> list[float]:
        """Pen position before each character, then the end of the text."""
        pens = [0.0]
        x = 0.0
        for i, char in enumerate(text):
            x += self.advance(char) + spacing
            if i + 1 < len(text):
                x += self.kern(text[i : i + 2])
            pens.append(x)
        return pens

    def width(self, text: str, spacing: float = 0.0) -> float:
        return self.pens(text, spacing)[-1]

    def glyph(self, char: str, quarter: int = 0) -> Glyph:
        """The glyph of `char` with the pen `quarter` fourths of a pixel right of a pixel edge."""
        found = self._glyphs.get((char, quarter))
        if found is None:
            core, (left, top) = self._pil.getmask2(char, mode="L", anchor="ls", start=(quarter / 4, 0))
            matte = Image.frombytes("L", core.size, bytes(core)) if core.size[0] and core.size[1] else None
            box = matte.getbbox() if matte is not None else None
            if matte is None or box is None:
                found = Glyph(None, 0, 0, (0, 0, 0, 0))
            else:
                ink = (box[0] + left, box[1] + top, box[2] + left, box[3] + top)
                found = Glyph(matte.crop(box), ink[0], ink[1], ink)
            self._glyphs[char, quarter] = found
        return found


_FACES: OrderedDict[tuple[str, float], Face] = OrderedDict()
_MOST_FACES = 768  # about 100 kB each when full


@dataclass(eq=False)
class Font:
    """One usable font file (`path` empty: the font inside Pillow)."""

    path: str
    family: str
    style: str
    cap_ratio: float  # height of "H" over the size in pixels
    mono: bool
    caps_only: bool  # small letters look like capitals: draw capitals with it, nothing else
    advances: dict[str, float] = field(repr=False)

    def open(self, size: float) -> ImageFont.FreeTypeFont:
        return _open(self.path, size)

    @property
    def bold(self) -> bool:
        return any(word in self.style.lower() for word in ("bold", "black", "heavy"))

    @property
    def slanted(self) -> bool:
        return any(word in self.style.lower() for word in ("italic", "oblique"))

    def width(self, text: str, cap: float) -> float:
        """Width of `text` at a cap height of `cap` pixels, without opening that size (within a few per cent)."""
        return sum(map(self.advances.__getitem__, text)) * cap / (self.cap_ratio * REFERENCE_SIZE)

    def face(self, cap: float) -> Face:
        """The font at a cap height of about `cap` pixels."""
        size = max(4.0, round(2 * cap / self.cap_ratio) / 2)
        key = (self.path, size)
        face = _FACES.get(key)
        if face is None:
            face = _FACES[key] = Face(self, size)
            if len(_FACES) > _MOST_FACES:
                _FACES.popitem(last=False)
        else:
            _FACES.move_to_end(key)
        return face


def _open(path: str, size: float) -> ImageFont.FreeTypeFont:
    if not path:
        font = ImageFont.load_default(size)
        if not isinstance(font, ImageFont.FreeTypeFont):
            raise RuntimeError("Pillow was built without FreeType: text cannot be rendered with it")
        return font
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


def font_folders() -> list[Path]:
    """Folders in which font files are looked for, on Linux, macOS and Windows."""
    folders = []
    matplotlib = importlib.util.find_spec("matplotlib")
    if matplotlib is not None and matplotlib.origin:
        folders.append(Path(matplotlib.origin).parent / "mpl-data" / "fonts" / "ttf")
    home = Path.home()
    folders += [Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), home / ".fonts", home / ".local/share/fonts"]
    folders += [Path("/Library/Fonts"), Path("/System/Library/Fonts"), home / "Library/Fonts"]
    if "WINDIR" in os.environ:
        folders.append(Path(os.environ["WINDIR"]) / "Fonts")
    return [folder for folder in folders if folder.is_dir()]


def _read(path: str) -> Font | None:
    """Open and check one file; None when it cannot draw all of printable ASCII as distinct characters."""
    try:
        font = _open(path, REFERENCE_SIZE)
        family, style = font.getname()
        if not family or _NOT_TEXT.search(family) or _TOO_THIN.search(f"{family} {style}"):
            return None
        missing = bytes(font.getmask("\uffff"))
        seen = {}
        for char in "AaBbGgQq08~{@,":
            mask = font.getmask(char)
            ink = bytes(mask)
            if not any(ink) or ink == missing:
                return None
            seen[char] = (mask.size, ink)
        if len({seen[char] for char in "ABGQ08~{@,"}) < 10:
            return None
        top, bottom = font.getbbox("H", anchor="ls")[1::2]
        if bottom - top < REFERENCE_SIZE / 4:
            return None
        advances = {char: font.getlength(char) for char in ASCII + " "}
    except (OSError, ValueError):
        return None
    if min(advances.values()) <= 0:
        return None
    return Font(
        path=path,
        family=family,
        style=style or "",
        cap_ratio=(bottom - top) / REFERENCE_SIZE,
        mono=max(advances.values()) - min(advances.values()) < 0.01,
        caps_only=seen["a"] == seen["A"] or seen["b"] == seen["B"] or seen["g"] == seen["G"],
        advances=advances,
    )


def _group(font: Font) -> str:
    """Family without words of width and weight: "Lato Medium" and "Lato" are one."""
    return " ".join(_WIDTH_AND_WEIGHT.sub(" ", font.family).lower().split()) or font.family.lower()


@cache
def families() -> dict[str, list[Font]]:
    """Every usable font of this machine by family, in the order of names; read once a process."""
    found: dict[str, dict[str, Font]] = {}
    for folder in font_folders():
        for file in sorted(folder.rglob("*")):
            if file.suffix.lower() not in (".ttf", ".otf") or _NOT_TEXT.search(file.stem) or _TOO_THIN.search(file.stem):
                continue
            font = _read(str(file))
            if font is not None:
                # One file a style: the same face often lies in two folders or in two formats.
                found.setdefault(_group(font), {}).setdefault(f"{font.family} {font.style}", font)
    if not found:
        own = _read("")
        if own is None:
            raise RuntimeError("no font can be drawn here: neither a font file nor Pillow's own font is usable")
        found[_group(own)] = {own.style: own}
    return {name: list(found[name].values()) for name in sorted(found)}


@lru_cache(maxsize=2)
def families_of(split: str) -> tuple[tuple[Font, ...], ...]:
    """The families of one split. About one in six families is held out; with two or more families both splits have
    one and share none; a single family serves both."""
    every = families()
    if len(every) == 1:
        return tuple(tuple(fonts) for fonts in every.values())
    ranked = sorted(every, key=lambda name: zlib.crc32(name.encode()))
    held_out = set(ranked[: max(1, len(ranked) // 6)])
    return tuple(tuple(fonts) for name, fonts in every.items() if (name in held_out) == (split == "heldout"))
