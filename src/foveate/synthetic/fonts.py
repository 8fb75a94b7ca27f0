"""Fonts found on this machine, checked for printable ASCII, with cached glyphs.

Looked for at run time: the DejaVu family inside the matplotlib package, the usual font folders of the system, and
the font that Pillow carries itself, in which much is drawn that people show a model. Nothing is downloaded and none is
required: with no font file at all everything is drawn in Pillow's own font.
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
from typing import Any, NamedTuple

from PIL import Image, ImageFont

from foveate.core.errors import FoveateError

ASCII = "".join(chr(code) for code in range(33, 127))
REFERENCE_SIZE = 64  # advances are measured once at this size and scaled

# Faces without text in them, or whose ASCII is mapped to something else (Computer Modern's maths faces).
_NOT_TEXT = re.compile(
    r"(^cm[a-z]+\d)|symbol|dingbat|emoji|ornament|braille|lastresort|siz(one|two|three|four|five)|nonuni"
    r"|mathematics|music|chancery|initials|outline|shadow|icons|keyboard|d050000l|z003|tex gyre"
    # Capitals among the small letters or in their place: what is drawn is not what was meant.
    r"|unifur|humor|small ?caps|titling"
    # Handwriting, keys, and faces for phonetic alphabets.
    r"|romande adf script|keyfont|phon.ti",
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
    """Ink of one character: a grey matte and the box of its ink from the pen, in pixels."""

    matte: Image.Image | None
    left: int
    top: int
    right: int
    bottom: int


_NO_INK = Glyph(None, 0, 0, 0, 0)


def _levels(core: Any) -> bytes:
    """Grey levels of the mask that Pillow draws a glyph as."""
    return bytes(core)


class Face:
    """A font at one size in pixels, drawing glyph by glyph so that the place of every character is known.

    Pens advance by the unhinted widths of the font, scaled, so that text is as wide as `Font.width` says.
    """

    def __init__(self, font: Font, size: int) -> None:
        self.font = font
        self.size = size
        self.scale = size / REFERENCE_SIZE
        self._pil = font.open(size)
        self._glyphs: dict[tuple[str, int], Glyph] = {}

    def advance(self, char: str) -> float:
        """How far the pen moves after `char`, in pixels."""
        return self.font.advances[char] * self.scale

    def pens(self, text: str, spacing: float = 0.0) -> list[float]:
        """Pen position before each character, then the end of the text."""
        advances, kern, scale = self.font.advances, self.font.kern, self.scale
        pens = [0.0]
        x = 0.0
        last = ""
        for char in text:
            if last and not self.font.mono:
                x += kern(last, char) * scale
                pens[-1] = x
            x += advances[char] * scale + spacing
            pens.append(x)
            last = char
        return pens

    def width(self, text: str, spacing: float = 0.0) -> float:
        """Width of `text` in pixels, pen to pen."""
        return self.pens(text, spacing)[-1]

    def glyph(self, char: str, half: int = 0) -> Glyph:
        """The glyph of `char` with the pen on a pixel edge (`half` 0) or half a pixel right of it (1)."""
        found = self._glyphs.get((char, half))
        if found is None:
            core, (left, top) = self._pil.getmask2(char, mode="L", anchor="ls", start=(half / 2, 0))
            matte = Image.frombytes("L", core.size, _levels(core)) if core.size[0] and core.size[1] else None
            box = matte.getbbox() if matte is not None else None
            if matte is None or box is None:
                found = _NO_INK
            else:
                if box != (0, 0, *core.size):
                    matte = matte.crop(box)
                found = Glyph(matte, box[0] + left, box[1] + top, box[2] + left, box[3] + top)
            self._glyphs[char, half] = found
        return found


_FACES: OrderedDict[tuple[str, int], Face] = OrderedDict()
_MOST_FACES = 192  # about 300 kB each in use
_UNKNOWN = 255


@dataclass(eq=False)
class Font:
    """One usable font file (`path` empty: the font inside Pillow)."""

    path: str
    family: str
    style: str
    cap_ratio: float  # height of "H" over the size in pixels
    mono: bool
    advances: dict[str, float] = field(repr=False)  # at REFERENCE_SIZE
    _kerns: bytearray = field(default_factory=lambda: bytearray(b"\xff" * (95 * 95)), repr=False)
    _reference: ImageFont.FreeTypeFont | None = field(default=None, repr=False)

    def open(self, size: int) -> ImageFont.FreeTypeFont:
        """The font at `size` pixels as Pillow has it."""
        return _open(self.path, size)

    @property
    def bold(self) -> bool:
        """Whether the strokes are heavy."""
        return any(word in self.style.lower() for word in ("bold", "black", "heavy"))

    @property
    def slanted(self) -> bool:
        """Whether it is italic or oblique."""
        return any(word in self.style.lower() for word in ("italic", "oblique"))

    def kern(self, first: str, second: str) -> float:
        """How much closer (negative) or farther the second character stands, in pixels at REFERENCE_SIZE.

        Measured once a pair and kept as a quarter of a pixel in one byte.
        """
        at = (ord(first) - 32) * 95 + ord(second) - 32
        kept = self._kerns[at]
        if kept == _UNKNOWN:
            if self._reference is None:
                self._reference = _open(self.path, REFERENCE_SIZE)
            apart = self._reference.getlength(first + second) - self.advances[first] - self.advances[second]
            kept = self._kerns[at] = min(254, max(0, round(apart * 4) + 127))
        return (kept - 127) / 4

    def width(self, text: str, cap: float) -> float:
        """Width of `text` at a cap height of `cap` pixels, without kerning."""
        return sum(map(self.advances.__getitem__, text)) * cap / (self.cap_ratio * REFERENCE_SIZE)

    def face(self, cap: float) -> Face:
        """The font at a cap height of about `cap` pixels, in whole pixels of size, rounded down."""
        size = max(4, int(cap / self.cap_ratio + 0.2))
        key = (self.path, size)
        face = _FACES.get(key)
        if face is None:
            face = _FACES[key] = Face(self, size)
            if len(_FACES) > _MOST_FACES:
                _FACES.popitem(last=False)
        else:
            _FACES.move_to_end(key)
        return face


def _open(path: str, size: int) -> ImageFont.FreeTypeFont:
    if not path:
        font = ImageFont.load_default(size)
        if not isinstance(font, ImageFont.FreeTypeFont):
            raise RuntimeError("Pillow was built without FreeType: text cannot be rendered with it")
        return font
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


def font_folders() -> list[Path]:
    """Folders in which font files are looked for, on Linux, macOS and Windows.

    The environment variable `FOVEATE_FONTS` replaces them by folders separated as in `PATH`, so that what is rendered
    does not depend on the fonts that are installed.

    Raises:
        FoveateError: If it names something that is not a folder.
    """
    folders = []
    if (chosen := os.environ.get("FOVEATE_FONTS")) is not None:
        folders = [Path(folder) for folder in chosen.split(os.pathsep) if folder]
        for folder in folders:
            if not folder.is_dir():
                raise FoveateError(f"FOVEATE_FONTS names {str(folder)!r}, which is not a folder")
        return folders
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
        missing = _levels(font.getmask("\uffff"))
        drawn = {}
        for char in "AaBbGgQq08~{@,":
            mask = font.getmask(char)
            ink = _levels(mask)
            if not any(ink) or ink == missing:
                return None
            drawn[char] = (mask.size, ink)
        if len({drawn[char] for char in "ABGQ08~{@,"}) < 10:
            return None
        if any(drawn[char] == drawn[char.upper()] for char in "abgq"):
            return None  # capitals in place of small letters: what is drawn would not be what was meant
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
        advances=advances,
    )


def _group(font: Font) -> str:
    """Family without words of width and weight: "Lato Medium" and "Lato" are one."""
    name = re.sub(r"(?<=[a-z])(bold|condensed|italic)$|\d+(x\d+)?", "", font.family.lower())
    return " ".join(_WIDTH_AND_WEIGHT.sub(" ", name).split()) or font.family.lower()


@cache
def families() -> dict[str, list[Font]]:
    """Every usable font of this machine by family, in the order of names; read once a process."""
    found: dict[str, dict[str, Font]] = {}
    for folder in font_folders():
        for file in sorted(folder.rglob("*")):
            if (
                file.suffix.lower() not in (".ttf", ".otf")
                or _NOT_TEXT.search(file.stem)
                or _TOO_THIN.search(file.stem)
            ):
                continue
            font = _read(str(file))
            if font is not None:
                # One file a style: the same face often lies in two folders or in two formats.
                found.setdefault(_group(font), {}).setdefault(f"{font.family} {font.style}", font)
    own = _read("")
    if own is not None:
        found.setdefault(_group(own), {}).setdefault(f"{own.family} {own.style}", own)
    if not found:
        raise RuntimeError("no font can be drawn here: neither a font file nor Pillow's own font is usable")
    return {name: list(found[name].values()) for name in sorted(found)}


# What most documents are set in; drawn three times as often as the others.
_USUAL = re.compile(
    r"liberation|dejavu|noto|roboto|open sans|lato|nimbus|free(sans|serif|mono)|aerial|veranda|tymes|carlito"
    r"|caladea|stix|aileron"
)


@lru_cache(maxsize=2)
def families_of(split: str) -> tuple[tuple[Font, ...], ...]:
    """The families of one split, those common in print listed three times.

    About one in six families is held out. With two or more families both splits have one and share none; a single
    family serves both.
    """
    every = families()
    if len(every) == 1:
        return tuple(tuple(fonts) for fonts in every.values())
    ranked = sorted(every, key=lambda name: zlib.crc32(name.encode()))
    held_out = set(ranked[: max(1, len(ranked) // 6)])
    return tuple(
        tuple(fonts)
        for name, fonts in every.items()
        if (name in held_out) == (split == "heldout")
        for _ in range(3 if _USUAL.search(name) else 1)
    )
