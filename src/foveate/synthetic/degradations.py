"""Degradations of images in five levels, with the quality that they leave, for training on image quality.

The classes and the names of the levels are those of Q-Insight (arXiv 2503.22679). Its images come from collections of
photos with ratings; the strengths of the levels and the scores here are choices of ours.
"""

from __future__ import annotations

import io
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from foveate.core.errors import FoveateError

#: Strength of a class at each level, the slightest first.
STRENGTHS: dict[str, tuple[float, ...]] = {
    "noise": (6, 14, 26, 44, 70),  # standard deviation in grey levels
    "compression": (40, 22, 12, 6, 2),  # quality of JPEG
    "blur": (0.8, 1.4, 2.2, 3.4, 5.0),  # standard deviation in pixels
    "darken": (0.75, 0.55, 0.38, 0.24, 0.13),  # factor of all values
}
LEVELS = ("slight", "moderate", "obvious", "serious", "catastrophic")
#: Class and level of an image without a degradation.
NONE = "null"


@dataclass(frozen=True)
class Degraded:
    """An image with what was done to it.

    Attributes:
        image: RGB, of the size of the original.
        kind: class of the degradation, or "null".
        level: its level, or "null".
        score: quality from 1 (worst) to 5 (undegraded): 5 less 0.8 for every level.
    """

    image: Image.Image
    kind: str
    level: str
    score: float


def degraded(image: Image.Image, kind: str, level: str, rng: random.Random) -> Degraded:
    """Degrade an image.

    Args:
        image: RGB.
        kind: "noise", "compression", "blur", "darken" or "null".
        level: a name of `LEVELS`, or "null" with the class "null".
        rng: of the noise; other classes draw nothing.

    Raises:
        FoveateError: unknown class or level.
    """
    image = image.convert("RGB")
    if kind == NONE and level == NONE:
        return Degraded(image, NONE, NONE, 5.0)
    if kind not in STRENGTHS or level not in LEVELS:
        raise FoveateError(
            f"there is no degradation {kind!r} of level {level!r}; possible are {', '.join(STRENGTHS)} at "
            f"{', '.join(LEVELS)}, and {NONE} at {NONE}."
        )
    place = LEVELS.index(level)
    strength = STRENGTHS[kind][place]
    if kind == "noise":
        noise = np.random.default_rng(rng.getrandbits(64)).normal(0, strength, (image.height, image.width, 3))
        image = Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
    elif kind == "compression":
        held = io.BytesIO()
        image.save(held, "JPEG", quality=int(strength))
        image = Image.open(held).convert("RGB")
    elif kind == "blur":
        image = image.filter(ImageFilter.GaussianBlur(strength))
    else:
        image = Image.fromarray((np.asarray(image) * strength).astype(np.uint8))
    return Degraded(image, kind, level, 5.0 - 0.8 * (place + 1))
