"""Compression rates of sound and video, and the reduction of features in time by a rate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor

from foveate.core.errors import FoveateError

#: Frames a second of Whisper's encoder, and the fewest frames that the authors keep of a clip.
AUDIO_FRAMES_PER_SECOND, _LEAST_FRAMES = 50, 25
COMPRESSIONS = ("average", "stack")


class Rates(NamedTuple):
    """How many frames of each modality become one token; None for a modality that the model does not read.

    Args:
        audio: Frames of the audio encoder.
        video: Frames of the video encoder.
    """

    audio: int | None = None
    video: int | None = None

    @property
    def key(self) -> str:
        """Name of the modules of these rates."""
        return f"{self.audio or 0}_{self.video or 0}"

    def __str__(self) -> str:
        parts = (("audio", self.audio), ("video", self.video))
        return ",".join(f"{name}:{rate}" for name, rate in parts if rate is not None)

    @classmethod
    def of(cls, value: Any) -> Rates:
        """Rates of `Rates`, of a pair, or of a text such as `"audio:4,video:2"`, `"audio:16"`.

        Raises:
            FoveateError: it is nothing of these.
        """
        if isinstance(value, str):
            try:
                pairs = [part.strip().split(":") for part in value.split(",")]
                named = {name: int(rate) for name, rate in pairs}
                if len(named) == len(pairs):  # each modality once
                    return cls(**named)
            except (ValueError, TypeError):
                pass
            raise FoveateError(f"{value!r} are no rates; write them as audio:4,video:2.")
        pair = list(value) if isinstance(value, Iterable) else []
        if len(pair) == 2 and all(rate is None or type(rate) is int for rate in pair):
            return cls(*pair)
        raise FoveateError(f"{value!r} are no rates; give (audio, video) or a text such as audio:4,video:2.")


def audio_frames(samples: int, sampling_rate: int = 16_000) -> int:
    """Frames of Whisper's encoder that hold a sound of so many samples, at least half a second's, as in Llama-AVSR."""
    return max(samples * AUDIO_FRAMES_PER_SECOND // sampling_rate, _LEAST_FRAMES)


def compress_frames(features: Tensor, rate: int, compression: str) -> Tensor:
    """Make one vector of every `rate` consecutive frames; an incomplete last group is dropped.

    Args:
        features: `(B, T, D)`.
        rate: Frames of a group.
        compression: `"average"`: their mean; `"stack"`: their concatenation.

    Returns:
        `(B, T // rate, D)`, or `(B, T // rate, rate * D)` where they are stacked.
    """
    groups = features[:, : features.shape[1] // rate * rate].unflatten(1, (-1, rate))
    return groups.flatten(2) if compression == "stack" else groups.mean(dim=2)
