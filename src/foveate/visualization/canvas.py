"""Colours, sizes and text layout shared by all figures. Drawn with Pillow and its built-in font."""

from __future__ import annotations

import bisect
import functools
from typing import Any

from PIL import Image, ImageDraw, ImageFont

WIDTH, MARGIN, GAP = 1600, 48, 32
INK, MUTED, LINE, PAPER = (27, 31, 36), (104, 112, 122), (222, 226, 230), (255, 255, 255)
ACCENT = (217, 72, 15)
TOKEN_TINT = (28, 100, 200)

#: Tallest panel in pixels, and the shortest side that a panel of a very thin image is widened to.
TALLEST, THINNEST = 620, 24
#: Longest question and answer that are shown, in lines.
MOST_LINES = 4
#: Characters of a text that are used; more do not fit `MOST_LINES`.
LONGEST_TEXT = 1000


@functools.cache
def load_font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Load Pillow's built-in font at a size in pixels."""
    return ImageFont.load_default(size)


def blank(height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """Create an empty block between the margins, `height` pixels tall, with its drawing context."""
    block = Image.new("RGB", (WIDTH - 2 * MARGIN, height), PAPER)
    return block, ImageDraw.Draw(block)


def wrap(text: str, font: Any, width: float) -> list[str]:
    """Break `text` into lines that fit `width`; longer words are cut, and excess lines end in an ellipsis."""
    lines, line = [], ""
    for word in text[:LONGEST_TEXT].split():
        while font.getlength(word) > width:
            cut = max(bisect.bisect(range(len(word)), width, key=lambda n: font.getlength(word[: n + 1])), 1)
            lines, line, word = [*lines, *([line] if line else []), word[:cut]], "", word[cut:]
        if line and font.getlength(f"{line} {word}") > width:
            lines, line = [*lines, line], word
        else:
            line = f"{line} {word}" if line else word
    lines = [*lines, line] if line else lines
    return lines if len(lines) <= MOST_LINES else [*lines[: MOST_LINES - 1], lines[MOST_LINES - 1] + " ..."]


def shorten(text: str, font: Any, width: float) -> str:
    """Shorten a text to a width."""
    if font.getlength(text) <= width:
        return text
    return text[: bisect.bisect(range(len(text)), width, key=lambda n: font.getlength(text[:n] + "..."))] + "..."


def duration(seconds: float) -> str:
    """Format seconds, in milliseconds below one."""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{1000 * seconds:.3g} ms" if seconds < 0.1 else f"{1000 * seconds:.0f} ms"
