"""Backgrounds and augmentation of pages: paper, texture, noise, blur, scanner, JPEG.

Noise is cut out of tiles made once a process from fixed seeds, at a random place and with a random sign: drawing
fresh normal numbers for every pixel would cost more than everything else in a sample.
"""

from __future__ import annotations

import io
import math
import random
from functools import cache

import numpy as np
from PIL import Image, ImageFilter

from foveate.synthetic.sample import Character

_TILE = 1024
Colour = tuple[int, ...]  # red, green, blue


@cache
def _noise(grain: int) -> np.ndarray:
    """(1024, 1024) int8 normal noise of standard deviation 32, whose features are about `grain` pixels wide."""
    generator = np.random.default_rng(grain)
    side = _TILE // grain
    values = generator.standard_normal((side, side)).astype(np.float32)
    if grain > 1:
        values = np.asarray(Image.fromarray(values).resize((_TILE, _TILE), Image.Resampling.BICUBIC))
    return np.clip(values * (32 / values.std()), -127, 127).astype(np.int8)


def noise(rng: random.Random, width: int, height: int, grain: int = 1) -> np.ndarray:
    """(height, width) float32 noise of mean 0 and standard deviation 1."""
    tile = _noise(grain)
    x, y = rng.randrange(max(1, _TILE - width)), rng.randrange(max(1, _TILE - height))
    return tile[y : y + height, x : x + width] * np.float32(rng.choice((-1, 1)) / 32)


def luminance(colour: Colour) -> float:
    """Brightness, 0 to 255, by the weights of Rec. 601."""
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def apart(one: Colour, other: Colour) -> float:
    """Difference of luminance, 0 to 255."""
    return abs(luminance(one) - luminance(other))


def colours(rng: random.Random, difficulty: float, dark: bool = True) -> tuple[Colour, Colour]:
    """Paper and ink of a document, at least 95 (of 255) apart in luminance; `dark`: light ink on dark paper too."""
    kind = rng.random()
    if not dark:
        kind = max(kind, 0.12)
    if kind > difficulty * 0.75:
        paper = (rng.randint(238, 255),) * 3
        return paper, (rng.randint(0, 60),) * 3
    while True:
        if kind < 0.12:  # light on dark
            paper = tuple(rng.randint(0, 110) for _ in range(3))
            ink = tuple(rng.randint(150, 255) for _ in range(3))
        elif kind < 0.35:  # grey scan, sometimes pale
            paper = (rng.randint(150, 255),) * 3
            ink = (rng.randint(0, 140),) * 3
        else:
            paper = tuple(rng.randint(185, 255) for _ in range(3))
            ink = tuple(rng.randint(0, 130) for _ in range(3))
        if apart(paper, ink) >= 95:
            return paper, ink


def sheet(rng: random.Random, width: int, height: int, colour: Colour, difficulty: float) -> Image.Image:
    """An empty sheet: plain, shaded, grained, stained, ruled."""
    if rng.random() > difficulty * 0.8:
        return Image.new("RGB", (width, height), colour)
    field = np.zeros((height, width), np.float32)
    kind = rng.random()
    if kind < 0.4:  # light falling from one side
        angle = rng.uniform(0, 2 * math.pi)
        across = np.linspace(-1, 1, width, dtype=np.float32)[None] * math.cos(angle)
        down = np.linspace(-1, 1, height, dtype=np.float32)[:, None] * math.sin(angle)
        field += (across + down) * rng.uniform(4, 22)
    if kind > 0.25:
        field += noise(rng, width, height, rng.choice((8, 32, 128))) * rng.uniform(1, 7)
    if rng.random() < 0.4:
        field += noise(rng, width, height, rng.choice((1, 2, 4))) * rng.uniform(1, 5)
    if rng.random() < 0.08:  # squared or ruled paper
        step = rng.randint(9, 30)
        field[rng.randrange(step) :: step] -= rng.uniform(8, 24)
        if rng.random() < 0.5:
            field[:, rng.randrange(step) :: step] -= rng.uniform(8, 24)
    pixels = field[:, :, None] + np.array(colour, np.float32)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _turned(
    rng: random.Random, image: Image.Image, characters: list[Character], difficulty: float
) -> tuple[Image.Image, list[Character]]:
    """Rotate, shear and shift the page and its characters a little; unchanged if a character would leave the image."""
    width, height = image.size
    angle = math.radians(rng.uniform(-2.2, 2.2) * difficulty)
    shear = rng.uniform(-0.03, 0.03) * difficulty
    scale = rng.uniform(0.94, 1.0)
    a, b = math.cos(angle) / scale, math.sin(angle) / scale + shear
    d, e = -math.sin(angle) / scale, math.cos(angle) / scale
    cx, cy = width / 2, height / 2
    c, f = cx - a * cx - b * cy, cy - d * cx - e * cy  # output pixel (x, y) comes from (ax + by + c, dx + ey + f)
    determinant = a * e - b * d
    moved = []
    for char, x, y, middle in characters:
        u, v = x - c, y - f
        turned_middle = None if middle is None else (a * (middle - f) - d * u) / determinant
        moved.append(Character(char, (e * u - b * v) / determinant, (a * v - d * u) / determinant, turned_middle))
    edge = 3
    if any(not (edge <= m.x <= width - edge and edge <= m.y <= height - edge) for m in moved):
        return image, characters
    fill = image.getpixel((0, 0))
    turned = image.transform(
        image.size, Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR, fillcolor=fill
    )
    return turned, moved


def degrade(
    rng: random.Random,
    image: Image.Image,
    characters: list[Character],
    difficulty: float,
    *,
    grey: bool | None = None,
    turn: bool = True,
    colour_matters: bool = False,
    contrast: float = 200.0,
) -> tuple[Image.Image, list[Character]]:
    """The page as a camera, a scanner or a careless save leaves it, and where its characters are then.

    `grey`: turn into grey levels (None: sometimes). `colour_matters`: never take colours away. `contrast`: difference
    of luminance between paper and ink; noise stays well below it.
    """
    if difficulty <= 0:
        return image, characters
    if turn and rng.random() < 0.35 * difficulty:
        image, characters = _turned(rng, image, characters, difficulty)
    if (grey if grey is not None else rng.random() < 0.25 * difficulty) and not colour_matters:
        image = image.convert("L")
        if rng.random() < 0.3 * difficulty:  # a scanner's steep curve
            low, high = rng.randint(0, 60), rng.randint(185, 255)
            image = image.point([min(255, max(0, int((v - low) * 255 / (high - low)))) for v in range(256)])
    if rng.random() < 0.25 * difficulty:
        image = image.filter(ImageFilter.BoxBlur(rng.uniform(0.2, 0.25 + 0.5 * difficulty)))
    if rng.random() < 0.4 * difficulty:
        strength = min(rng.uniform(1, 4 + 10 * difficulty), 0.1 * contrast)
        pixels = np.asarray(image).astype(np.int16)
        grain = (noise(rng, image.width, image.height, rng.choice((1, 1, 2))) * strength).astype(np.int16)
        pixels += grain if pixels.ndim == 2 else grain[:, :, None]
        image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    if image.mode != "RGB":
        image = image.convert("RGB")
    if rng.random() < 0.35 * difficulty:
        held = io.BytesIO()
        image.save(held, "JPEG", quality=rng.randint(30, 90))
        image = Image.open(held)
        image.load()
    return image, characters


def thermal(rng: random.Random, image: Image.Image) -> Image.Image:
    """Thermal print: heads that print unevenly along the paper, lines that fade."""
    grey = np.asarray(image.convert("L")).astype(np.float32)
    height, width = grey.shape
    columns = 1 - np.abs(noise(rng, width, 1, rng.choice((2, 8)))) * rng.uniform(0.02, 0.14)
    rows = 1 - np.abs(noise(rng, 1, height, rng.choice((4, 32)))) * rng.uniform(0.0, 0.12)
    paper = float(np.median(grey))
    fade = np.clip(columns * rows, 0.5, 1) * rng.uniform(0.75, 1.0)
    return Image.fromarray(np.clip(paper + (grey - paper) * fade, 0, 255).astype(np.uint8)).convert("RGB")
