"""Pictures with a class: one coloured shape somewhere on plain paper."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.synthetic.shapes import COLOURS

KINDS = ("circle", "square", "triangle", "cross")
NAMES = ("red", "green", "blue", "yellow")
CLASSES = tuple(f"{colour} {kind}" for kind in KINDS for colour in NAMES)
"""What the classes are, in the order of their numbers."""

_LARGER = 4
_CORNERS: dict[str, tuple[tuple[float, float], ...]] = {
    "square": ((-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)),
    "triangle": ((0, -1), (0.95, 0.8), (-0.95, 0.8)),
    "cross": (
        *((-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3)),
        *((0.3, 1), (-0.3, 1), (-0.3, 0.3), (-1, 0.3), (-1, -0.3), (-0.3, -0.3)),
    ),
}


def draw(number: int, side: int, split: str = "train") -> tuple[Image.Image, int]:
    """Picture `number` of a split and its class; the same for the same arguments.

    Args:
        number: 0 or more; classes take turns.
        side: Pixels.
        split: "train" or "held-out", whose pictures are drawn with other chance.

    Raises:
        FoveateError: there is no such split.
    """
    if split not in ("train", "held-out"):
        raise FoveateError(f'the splits are "train" and "held-out", not {split!r}.')
    chance = random.Random(f"next-scale {split} {number}")
    label = number % len(CLASSES)
    colour, kind = CLASSES[label].split()
    big = side * _LARGER
    level = chance.randint(205, 255) if chance.random() < 0.7 else chance.randint(10, 60)
    paper = tuple(min(255, max(0, level + chance.randint(-6, 6))) for _ in range(3))
    ink = tuple(min(255, max(0, part + chance.randint(-12, 12))) for part in COLOURS[colour])
    image = Image.new("RGB", (big, big), paper)
    radius = chance.uniform(0.2, 0.36) * big
    x, y = (chance.uniform(radius * 1.05, big - radius * 1.05) for _ in range(2))
    pen = ImageDraw.Draw(image)
    if kind == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=ink)
    else:
        turn = math.radians(chance.uniform(-12, 12))
        cos, sin = math.cos(turn) * radius, math.sin(turn) * radius
        pen.polygon([(x + cos * a - sin * b, y + sin * a + cos * b) for a, b in _CORNERS[kind]], fill=ink)
    return image.resize((side, side), Image.Resampling.BOX), label


def batch(numbers: Iterable[int], side: int, split: str = "train") -> tuple[Tensor, Tensor]:
    """Pictures (B, 3, side, side) in [-1, 1] and their classes (B,)."""
    drawn = [draw(number, side, split) for number in numbers]
    pixels = np.stack([np.asarray(image) for image, _ in drawn])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1, torch.tensor([label for _, label in drawn])


def to_images(pixels: Tensor) -> list[Image.Image]:
    """RGB images of pictures (B, 3, H, W) in [-1, 1]."""
    levels = ((pixels.detach().float().cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return [Image.fromarray(picture) for picture in levels.permute(0, 2, 3, 1).numpy()]
