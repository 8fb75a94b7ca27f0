"""Spoken texts with the times of their phonemes, by espeak-ng."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from struct import unpack_from
from typing import NamedTuple

import numpy as np

from foveate.core.errors import FoveateError
from foveate.synthetic import espeak_worker

SAMPLING_RATE = 16_000
"""Samples a second, as speech encoders expect them."""


class Request(NamedTuple):
    """A text and how it is said.

    Args:
        text: In the language of the voice.
        voice: Of espeak-ng, with a variant: `"en-us+f2"`.
        speed: Words a minute.
        pitch: 0 to 100.
    """

    text: str
    voice: str
    speed: int = 160
    pitch: int = 50


@dataclass(frozen=True)
class Speech:
    """A spoken text.

    Args:
        sound: `(n,)` float32 in [-1, 1], `SAMPLING_RATE` samples a second.
        phonemes: Start in seconds and name of each phoneme, as espeak-ng writes them without stress; silence is `"_"`.
    """

    sound: np.ndarray
    phonemes: tuple[tuple[float, str], ...]

    @property
    def seconds(self) -> float:
        """Duration."""
        return len(self.sound) / SAMPLING_RATE


def speak(requests: Sequence[Request]) -> list[Speech]:
    """Synthesize texts; the same list gives the same samples.

    Raises:
        FoveateError: espeak-ng is not installed, has no such voice, or failed.
    """
    finished = subprocess.run(
        [sys.executable, "-I", str(Path(espeak_worker.__file__))],
        input=json.dumps([list(request) for request in requests]).encode(),
        capture_output=True,
        check=False,
    )
    if finished.returncode == espeak_worker._NO_LIBRARY:
        raise FoveateError(
            "spoken words are synthesized by espeak-ng, which is not installed: `pip install 'foveate[speech]'`, or "
            "`apt-get install espeak-ng` on Debian and Ubuntu, `brew install espeak-ng` on macOS."
        )
    error = finished.stderr.decode(errors="replace").strip()
    if finished.returncode == espeak_worker._NO_VOICE:
        raise FoveateError(f"espeak-ng has no voice {error!r}; `espeak-ng --voices` lists them.")
    if finished.returncode != 0:
        raise FoveateError(f"espeak-ng failed with code {finished.returncode}: {error.splitlines()[-1:]}.")
    data, place = finished.stdout, 4
    (rate,) = unpack_from("<i", data)
    spoken = []
    for _ in requests:
        (count,) = unpack_from("<i", data, place)
        samples = np.frombuffer(data, "<i2", count, place + 4).astype(np.float64) / 32768
        place += 4 + 2 * count
        (size,) = unpack_from("<i", data, place)
        listed = json.loads(data[place + 4 : place + 4 + size])
        place += 4 + size
        # Versions from 1.52 on write the stress in front of a phoneme.
        phonemes = tuple((start / rate, name.lstrip("',")) for start, name in listed)
        spoken.append(Speech(resample(samples, rate), phonemes))
    return spoken


def resample(samples: np.ndarray, rate: int) -> np.ndarray:
    """Resample `(n,)` to `SAMPLING_RATE` in the frequency domain, without what the lower rate cannot hold."""
    count = round(len(samples) * SAMPLING_RATE / rate)
    spectrum = np.fft.rfft(samples)[: count // 2 + 1]
    return (np.fft.irfft(spectrum, count) * (count / len(samples))).astype(np.float32)
