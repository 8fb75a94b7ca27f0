"""Spoken words as tensors, and the features that frozen encoders make of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import WhisperFeatureExtractor

from foveate.core.errors import FoveateError
from foveate.core.files import atomic_write
from foveate.models.avsr import LipEncoder
from foveate.synthetic.spoken_words import WORDS, Utterance, utterance
from foveate.training.avsr.recipe import MEL_BINS, SECONDS
from foveate.training.callbacks import StopRequest

#: Words of an utterance, and utterances of a file of features.
WORDS_PER_UTTERANCE, _BLOCK = 3, 250


@cache
def feature_extractor() -> WhisperFeatureExtractor:
    """Log-mel spectrograms as Whisper reads them, of clips of two seconds."""
    return WhisperFeatureExtractor(feature_size=MEL_BINS, chunk_length=SECONDS)


@dataclass(frozen=True)
class Batch:
    """Utterances as inputs of both encoders, with labels per frame.

    Args:
        input_features: `(B, bins, frames)`.
        video_values: `(B, T, H, W)` in [-1, 1].
        phonemes: `(B, 100)`.
        visemes: `(B, T)`.
        texts: Words of each.
    """

    input_features: Tensor
    video_values: Tensor
    phonemes: Tensor
    visemes: Tensor
    texts: list[str]


def make_batch(utterances: Sequence[Utterance]) -> Batch:
    """Spectrograms, clips and labels of utterances."""
    sounds = [one.sound for one in utterances]
    spectrograms = feature_extractor()(sounds, sampling_rate=16_000, return_tensors="pt").input_features
    frames = torch.from_numpy(np.stack([one.frames for one in utterances]))
    return Batch(
        input_features=spectrograms,
        video_values=frames.float() / 127.5 - 1,
        phonemes=torch.from_numpy(np.stack([one.phonemes for one in utterances])),
        visemes=torch.from_numpy(np.stack([one.visemes for one in utterances])),
        texts=[" ".join(one.words) for one in utterances],
    )


@dataclass(frozen=True)
class Features:
    """Features of frozen encoders.

    Args:
        audio: `(N, 100, d)` float16.
        video: `(N, 50, d)` float16.
        texts: Words of each utterance.
    """

    audio: Tensor
    video: Tensor
    texts: list[str]

    def inputs(self, rows: Tensor, audio: bool, video: bool) -> dict[str, Tensor]:
        """Arguments of the recognizer for some utterances."""
        named = (("audio_features", self.audio, audio), ("video_features", self.video, video))
        return {name: values[rows].float() for name, values, wanted in named if wanted}


@torch.no_grad()
def encode_utterances(
    audio_encoder: torch.nn.Module,
    lips: LipEncoder,
    numbers: range,
    split: str,
    snrs: Sequence[float | None],
    noise: str,
    folder: Path,
    stop: StopRequest,
    on_progress: Callable[[int, int], None],
) -> Features | None:
    """Encode utterances once, in files of 250, so that an interrupted run continues.

    Args:
        audio_encoder: Of Whisper.
        lips: Lip encoder.
        numbers: Numbers of the utterances, from 0.
        split: Of `utterance`.
        snrs: Levels of noise, which take turns.
        noise: Kind of noise.
        folder: Of the files.
        stop: Checked after each file.
        on_progress: Called with encoded and all utterances.

    Returns:
        The features; None if it was stopped.

    Raises:
        FoveateError: a file is damaged, or was made for another number of utterances.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for start in range(0, len(numbers), _BLOCK):
        path = folder / f"{start:06d}.safetensors"
        if not path.is_file():
            if stop.requested:
                return None
            made = [
                utterance(number, split, snr=snrs[number % len(snrs)], noise=noise, words=WORDS_PER_UTTERANCE)
                for number in numbers[start : start + _BLOCK]
            ]
            audio, video = [], []
            for begin in range(0, len(made), 25):
                batch = make_batch(made[begin : begin + 25])
                audio.append(audio_encoder(batch.input_features).last_hidden_state.half())
                video.append(lips(batch.video_values).last_hidden_state.half())
            words = torch.tensor([[WORDS.index(word) for word in one.words] for one in made])
            with atomic_write(path) as partial:
                save_file({"audio": torch.cat(audio), "video": torch.cat(video), "words": words}, partial)
        try:
            parts.append(load_file(path))
        except (OSError, SafetensorError) as error:
            raise FoveateError(f"{path} is damaged; remove it: {error}") from error
        expected = len(numbers[start : start + _BLOCK])
        if (found := len(parts[-1]["words"])) != expected:
            raise FoveateError(
                f"{path} has {found} utterances in place of {expected}: it was made for another number of them; remove "
                f"{folder}, or choose another folder of runs."
            )
        on_progress(min(start + _BLOCK, len(numbers)), len(numbers))
    audio, video, words = (torch.cat([part[name] for part in parts]) for name in ("audio", "video", "words"))
    return Features(audio, video, [" ".join(WORDS[number] for number in row) for row in words.tolist()])
