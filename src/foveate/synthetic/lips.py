"""Mouths that are drawn from phonemes: one shape for all phonemes of a viseme.

What is visible of speech is part of it: "pat", "bat" and "mat" look the same, "fan" and "pan" do not.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from foveate.core.errors import FoveateError

FRAMES_PER_SECOND = 25


class Shape(NamedTuple):
    """A mouth; every value from 0 to 1."""

    opening: float
    width: float
    teeth: float = 0.0
    tongue: float = 0.0


#: Visemes, their shapes, and the phonemes of espeak-ng's English voices that look like them.
VISEMES: dict[str, tuple[Shape, str]] = {
    "rest": (Shape(0.06, 0.5), "_ _: ;"),
    "bilabial": (Shape(0.0, 0.5), "p b m"),
    "labiodental": (Shape(0.14, 0.55, teeth=1.0), "f v"),
    "dental": (Shape(0.28, 0.55, teeth=0.5, tongue=0.9), "T D"),
    "alveolar": (Shape(0.22, 0.62, teeth=0.6, tongue=0.2), "t d n s z l n- t# d# *"),
    "postalveolar": (Shape(0.26, 0.28, teeth=0.5), "S Z tS dZ r r-"),
    "velar": (Shape(0.34, 0.52, tongue=0.1), "k g N h j x"),
    "rounded": (Shape(0.24, 0.1), "w u: U u oU O: o@ O o: o"),
    "spread": (Shape(0.34, 0.98, teeth=0.3), "i: I i eI I# I2 i@"),
    "open": (Shape(0.95, 0.6, tongue=0.3), "a aI A: V 0 A aa A@ aU a# aI@"),
    "mid": (Shape(0.58, 0.66, tongue=0.2), "E @ 3: e @2 e@ E# @L @- 3 OI"),
}
#: Where a diphthong ends.
_ENDS = {"aI": "spread", "eI": "spread", "OI": "spread", "oU": "rounded", "aU": "rounded", "i@": "mid", "o@": "mid"}
_OF_PHONEME = {phoneme: viseme for viseme, (_, phonemes) in VISEMES.items() for phoneme in phonemes.split()}


def viseme(phoneme: str) -> str:
    """The viseme of a phoneme of espeak-ng.

    Raises:
        FoveateError: it is not one of English.
    """
    for name in (phoneme, phoneme.rstrip("0123456789#|-'")):
        if name in _OF_PHONEME:
            return _OF_PHONEME[name]
    raise FoveateError(f"there is no mouth shape for the phoneme {phoneme!r}; the voices must be English.")


def shapes(phonemes: Sequence[tuple[float, str]], count: int) -> np.ndarray:
    """Values `(count, 4)` of `Shape` for each frame.

    A shape is reached in the middle of its phoneme and changes linearly in between, so that neighbors influence each
    other as in speech.

    Args:
        phonemes: Start in seconds and name, in order of time.
        count: Frames, `FRAMES_PER_SECOND` a second.
    """
    times, values = [], []
    for place, (start, name) in enumerate(phonemes):
        end = phonemes[place + 1][0] if place + 1 < len(phonemes) else start + 0.1
        first = VISEMES[viseme(name)][0]
        last = _ENDS.get(name)
        for share, shape in ((0.5, first),) if last is None else ((0.3, first), (0.8, VISEMES[last][0])):
            times.append(start + share * (end - start))
            values.append(shape)
    at = (np.arange(count) + 0.5) / FRAMES_PER_SECOND
    if not times:
        return np.tile(np.array(VISEMES["rest"][0]), (count, 1))
    columns = np.array(values, dtype=np.float64).T
    return np.stack([np.interp(at, times, column) for column in columns], axis=1)


def draw_lips(values: np.ndarray, side: int, chance: random.Random) -> np.ndarray:
    """Draw mouths of one speaker, who is drawn from `chance`: place, size, colours and the noise of the camera.

    Args:
        values: `(T, 4)` of `shapes`.
        side: Pixels.
        chance: Random numbers of the speaker.

    Returns:
        `(T, side, side)` grey levels, uint8.
    """
    size, turn = chance.uniform(0.85, 1.1), chance.uniform(-0.08, 0.08)
    x0, y0 = chance.uniform(-0.08, 0.08), chance.uniform(-0.08, 0.08)
    skin, lips = chance.uniform(150, 200), chance.uniform(85, 125)
    noise = np.random.default_rng(chance.getrandbits(32))
    line = (np.arange(side) + 0.5) / side * 2 - 1
    x, y = (line[None, :] - x0) / size, (line[:, None] - y0) / size
    x, y = x + turn * y, y - turn * x
    opening, width, teeth, tongue = (column[:, None, None] for column in values.T)
    half_width = 0.3 + 0.42 * width
    half_height = 0.2 + 0.34 * opening
    sharp = side / 4

    def inside(across: np.ndarray, up: np.ndarray) -> np.ndarray:
        radius = np.sqrt((x / across) ** 2 + (y / up) ** 2)
        return 1 / (1 + np.exp(np.clip(sharp * (radius - 1) * np.minimum(across, up) * 2, -30, 30)))

    outer = inside(half_width, half_height)
    inner = inside(half_width - 0.12, 0.015 + 0.36 * opening + 0.12 * teeth)
    picture = skin + (lips - skin) * outer
    mouth = 25 + 205 * teeth * (y < -0.02 + 0.1 * teeth) + 90 * tongue * (y > 0.04)
    picture = picture + (np.minimum(mouth, 235) - picture) * inner
    picture = picture + noise.normal(0, 4, picture.shape)
    return picture.round().clip(0, 255).astype(np.uint8)
