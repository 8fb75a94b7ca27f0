"""Images as squares: padded with a colour, or cropped in the middle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image
from transformers.image_utils import OPENAI_CLIP_MEAN

from foveate.core.errors import FoveateError

Colour = tuple[int, int, int]


def mean_colour(mean: Sequence[float]) -> Colour:
    """The colour of an `image_mean` of a processor, floored as in the code of LLaVA."""
    red, green, blue = (int(value * 255) for value in mean)
    return red, green, blue


#: The mean colour of CLIP's images.
CLIP_COLOUR = mean_colour(OPENAI_CLIP_MEAN)


def checked_colour(value: Any) -> Colour:
    """A colour that is an option of a layout; JSON has a list.

    Raises:
        FoveateError: It is none.
    """
    if (
        not isinstance(value, (list, tuple))
        or len(value) != 3
        or any(type(v) is not int or not 0 <= v < 256 for v in value)
    ):
        raise FoveateError(f"background must be three whole numbers from 0 to 255, not {value!r}.")
    red, green, blue = value
    return red, green, blue


def padding(height: int, width: int) -> tuple[int, int]:
    """Pixels above and to the left of an image in the middle of a square."""
    side = max(height, width)
    return (side - height) // 2, (side - width) // 2


def padded_square(image: Image.Image, side: int, background: Colour) -> Image.Image:
    """The image in the middle of a square of a colour, resized to `side` (bicubic)."""
    top, left = padding(image.height, image.width)
    square = Image.new("RGB", (max(image.size), max(image.size)), background)
    square.paste(image, (left, top))
    return square.resize((side, side), Image.Resampling.BICUBIC)


def cropped_square(image: Image.Image, side: int) -> Image.Image:
    """The middle of the image, whose shorter side is resized to `side` (bicubic)."""
    shorter = min(image.size)
    width, height = (side if length == shorter else int(side * length / shorter) for length in image.size)
    left, top = (width - side) // 2, (height - side) // 2
    large = image.resize((width, height), Image.Resampling.BICUBIC)
    return large.crop((left, top, left + side, top + side))
