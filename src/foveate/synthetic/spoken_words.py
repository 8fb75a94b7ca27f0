"""Short sequences of spoken words with the speaker's mouth, at any level of noise; deterministic.

Voices of espeak-ng say each word in isolation; an utterance joins words of one voice. Voices of the split "held-out"
say nothing in "train". Sound and mouth carry different parts of the words: the noise hides the sound only, and words
such as "pat", "bat" and "mat" look the same.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from foveate.core.errors import FoveateError
from foveate.synthetic.espeak import SAMPLING_RATE, Request, Speech, speak
from foveate.synthetic.lips import FRAMES_PER_SECOND, VISEMES, draw_lips, shapes, viseme

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
#: Groups that look the same (pat, bat, mat), that sound alike (fan, van, pan), and words of commands.
OTHERS = (
    *("pat", "bat", "mat", "fan", "van", "pan", "bed", "led", "shed", "red"),
    *("go", "no", "yes", "stop", "left", "right", "green", "blue", "white", "down"),
)
WORDS = (*DIGITS, *OTHERS)

# None with `breath` in its definition: espeak-ng 1.52 does not draw that noise twice alike.
VOICES = {
    "train": (
        *("en-us+m1", "en-us+m2", "en-us+m3", "en-us+m4", "en-us+m7", "en-us+f1", "en-us+steph", "en-us+f4"),
        *("en+m1", "en+m3", "en+f1", "en+linda"),
    ),
    "held-out": ("en-us+m5", "en-us+Andrea", "en+m2", "en+f4"),
}
#: Speed and pitch of the renditions of a word.
_MANNERS = ((150, 35), (165, 55), (180, 70))
NOISES = ("babble", "white")
#: Phonemes of all words, the labels of a frame of sound; index 0 is silence.
PHONEMES = (
    *("_", "p", "b", "m", "f", "v", "T", "t", "d", "n", "s", "z", "l", "S", "r", "k", "g", "j", "w", "h"),
    *("i:", "I", "eI", "i@", "E", "@", "a", "aI", "aU", "V", "0", "oU", "o@", "u:", "O:"),
)
VISEME_NAMES = tuple(VISEMES)
#: Length in seconds of one label of `Utterance.phonemes`: one frame of Whisper's encoder.
LABEL_SECONDS = 0.02


@dataclass(frozen=True)
class Utterance:
    """Words that one speaker says.

    Args:
        words: In order.
        sound: `(n,)` float32, 16,000 samples a second, with its noise.
        frames: `(T, side, side)` uint8, the mouth, 25 frames a second.
        phonemes: `(n / 320,)` int64, the index in `PHONEMES` of what is said in every 20 ms.
        visemes: `(T,)` int64, the index in `VISEME_NAMES` for every frame.
        voice: Of espeak-ng.
    """

    words: tuple[str, ...]
    sound: np.ndarray
    frames: np.ndarray
    phonemes: np.ndarray
    visemes: np.ndarray
    voice: str


@lru_cache(maxsize=len(VOICES["train"]) + len(VOICES["held-out"]))
def _bank(voice: str) -> dict[str, tuple[Speech, ...]]:
    """All renditions of all words by a voice; about a second."""
    requests = [Request(word, voice, speed, pitch) for word in WORDS for speed, pitch in _MANNERS]
    spoken = speak(requests)
    count = len(_MANNERS)
    return {word: tuple(spoken[place * count : (place + 1) * count]) for place, word in enumerate(WORDS)}


def utterance(
    number: int,
    split: str = "train",
    *,
    snr: float | None = None,
    noise: str = "babble",
    words: int = 3,
    seconds: float = 2.0,
    side: int = 32,
) -> Utterance:
    """Utterance `number` of a split; the same for the same arguments, and the same words at every level of noise.

    Args:
        number: 0 or more.
        split: "train" or "held-out", with other voices.
        snr: Ratio of the power of speech to that of noise, in dB; None: no noise.
        noise: "babble", six other utterances of the same split, or "white".
        words: Their number.
        seconds: Length; what is shorter is followed by silence.
        side: Pixels of the mouth.

    Raises:
        FoveateError: an argument is out of range, the words need more time, or espeak-ng is not installed.
    """
    if split not in VOICES:
        raise FoveateError(f"the splits are {', '.join(VOICES)}, not {split!r}.")
    if noise not in NOISES:
        raise FoveateError(f"the noises are {', '.join(NOISES)}, not {noise!r}.")
    if words < 1 or side < 8 or number < 0:
        raise FoveateError(f"an utterance needs a number from 0, a word and 8 pixels; got {number}, {words}, {side}.")
    chance = random.Random(f"spoken words {split} {number} {words}")
    voice = chance.choice(VOICES[split])
    chosen = tuple(chance.choice(WORDS) for _ in range(words))
    clean, phonemes = _joined(chosen, voice, seconds, chance)
    frames = round(seconds * FRAMES_PER_SECOND)
    mouth = draw_lips(shapes(phonemes, frames), side, chance)
    sound = clean
    if snr is not None:
        disturbance = _disturbance(noise, split, len(clean), seconds, chance)
        power = np.square(clean).mean() / 10 ** (snr / 10)
        sound = clean + disturbance * np.sqrt(power / np.square(disturbance).mean())
    # A level of its own for each utterance, so that loudness says nothing about the noise.
    sound = sound * (10 ** chance.uniform(-1.3, -0.9) / np.sqrt(np.square(sound).mean()))
    labels = _sampled(phonemes, round(seconds / LABEL_SECONDS), LABEL_SECONDS)
    visible = _sampled(phonemes, frames, 1 / FRAMES_PER_SECOND)
    return Utterance(
        words=chosen,
        sound=sound.clip(-1, 1).astype(np.float32),
        frames=mouth,
        phonemes=np.array([_phoneme(name) for name in labels]),
        visemes=np.array([VISEME_NAMES.index(viseme(name)) for name in visible]),
        voice=voice,
    )


def _joined(
    words: tuple[str, ...], voice: str, seconds: float, chance: random.Random
) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """Sound `(n,)` of words with short pauses, and the starts of their phonemes."""
    bank = _bank(voice)
    spoken = [chance.choice(bank[word]) for word in words]
    pauses = [chance.randint(SAMPLING_RATE // 50, SAMPLING_RATE // 12) for _ in words]
    length = round(seconds * SAMPLING_RATE)
    if sum(pauses) + sum(map(_samples, spoken)) > length:  # then fast and without pauses
        spoken, pauses = [min(bank[word], key=_samples) for word in words], [0] * len(words)
    if sum(map(_samples, spoken)) > length:
        raise FoveateError(f"{len(words)} words need more than {seconds} s; ask for fewer words or more seconds.")
    sound, phonemes, place = np.zeros(length), [(0.0, "_")], 0
    for speech, pause in zip(spoken, pauses, strict=True):
        place += pause
        phonemes += [(place / SAMPLING_RATE + at, name) for at, name in speech.phonemes if not name.startswith("_")]
        sound[place : place + _samples(speech)] = speech.sound[: _samples(speech)]
        place += _samples(speech)
        phonemes.append((place / SAMPLING_RATE, "_"))
    return sound, phonemes


def _samples(speech: Speech) -> int:
    """Samples of a word without the pause that the library writes after each text."""
    end = next((at for at, name in speech.phonemes[1:] if name.startswith("_")), speech.seconds)
    return round(end * SAMPLING_RATE)


def _disturbance(kind: str, split: str, length: int, seconds: float, chance: random.Random) -> np.ndarray:
    if kind == "white":
        return np.random.default_rng(chance.getrandbits(32)).normal(size=length)
    total = np.zeros(length)
    for _ in range(6):
        voice = chance.choice(VOICES[split])
        total += np.roll(
            _joined(tuple(chance.choices(WORDS, k=3)), voice, seconds, chance)[0], chance.randrange(length)
        )
    return total


def _sampled(phonemes: list[tuple[float, str]], count: int, step: float) -> list[str]:
    """Name of the phoneme in the middle of each of `count` intervals of `step` seconds."""
    starts = np.array([start for start, _ in phonemes])
    places = np.searchsorted(starts, (np.arange(count) + 0.5) * step, side="right") - 1
    return [phonemes[place][1] for place in places]


def _phoneme(name: str) -> int:
    for candidate in (name, name.rstrip("0123456789#|-'"), name[:1]):
        if candidate in PHONEMES:
            return PHONEMES.index(candidate)
    raise FoveateError(f"the phoneme {name!r} is not among those of the words of this module.")
