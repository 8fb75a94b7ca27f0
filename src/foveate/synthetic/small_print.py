"""Pages with one number, printed large or small: half of them cannot be read at half the resolution."""

from __future__ import annotations

import random
from dataclasses import dataclass

from PIL import Image

from foveate.core.errors import FoveateError
from foveate.synthetic.augmentation import apart, colours, sheet
from foveate.synthetic.page import DoesNotFit, Page, RenderRequest
from foveate.synthetic.words import SPLITS

QUESTION = "What is the number?"
#: Heights of capitals in pixels of a page 128 pixels wide; those of other pages are in proportion.
LARGE, SMALL = (20.0, 26.0), (6.5, 8.0)
_WIDTH = 128
_ATTEMPTS = 100


@dataclass(frozen=True)
class SmallPrint:
    """A page with one number.

    Attributes:
        image: RGB.
        question: `QUESTION`.
        answer: the number, of two or three digits.
        small: whether it is in small print.
        box: left, top, right and bottom edge of its ink in pixels of the image.
    """

    image: Image.Image
    question: str
    answer: str
    small: bool
    box: tuple[int, int, int, int]


def small_print(number: int, split: str = "train", size: tuple[int, int] = (128, 96)) -> SmallPrint:
    """Render page `number` of a split. Of two neighbours, an even and an odd one, the odd one has small print.

    A number of three digits belongs to one split, as all strings of rendered pages do. Besides it the page has a word
    in the other size, so that the sizes on a page do not tell which one the number has.

    Args:
        number: 0 or more.
        split: "train" or "heldout".
        size: width and height in pixels, 96 x 64 or more.

    Raises:
        FoveateError: unknown split, or a page that is too small.
    """
    if split not in SPLITS:
        raise FoveateError(f"unknown split {split!r}; possible are {', '.join(SPLITS)}.")
    width, height = size
    if width < 96 or height < 64:
        raise FoveateError(f"pages with small print have at least 96 x 64 pixels, not {width} x {height}.")
    rng = random.Random(f"small print {split} {number} {size}")
    small = number % 2 == 1
    for attempt in range(_ATTEMPTS):
        try:
            return _page(RenderRequest(rng, split, width, height, 0.4, attempt), small)
        except DoesNotFit:
            continue
    raise RuntimeError(f"page {number} of {split} could not be laid out in {width} x {height} pixels")


def _page(brief: RenderRequest, small: bool) -> SmallPrint:
    rng, width, height = brief.rng, brief.width, brief.height
    answer = brief.words.digits(2, 3)
    caps = [rng.uniform(*sizes) * width / _WIDTH for sizes in ((SMALL, LARGE) if small else (LARGE, SMALL))]
    texts = [answer, brief.words.word(3, 5 if small else 9)]
    paper, ink = colours(rng, 0.3)
    page = Page(sheet(rng, width, height, paper, 0.2), apart(paper, ink))
    order = rng.sample((0, 1), 2)  # which of the two is above
    free = height - 8 - 1.5 * sum(caps)
    if free < 0:
        raise DoesNotFit("page")
    y = 4 + rng.random() * free / 2
    boxes = []
    for place in order:
        face = brief.font().face(caps[place])
        wide = face.width(texts[place])
        if wide > width - 10:
            raise DoesNotFit(texts[place])
        before = len(page.boxes)
        y += 1.5 * caps[place]
        page.text(4 + rng.random() * (width - 8 - wide), y - 0.25 * caps[place], texts[place], face, ink)
        y += rng.random() * free / 2
        if place == 0:
            boxes = page.boxes[before:]
    box = (
        int(min(b.left for b in boxes)),
        int(min(b.top for b in boxes)),
        int(max(b.right for b in boxes)),
        int(max(b.bottom for b in boxes)),
    )
    return SmallPrint(page.image, QUESTION, answer, small, box)
