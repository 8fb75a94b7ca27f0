"""The systems that are trained between the same encoders and language model: what each builds, learns and writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, WhisperModel

from foveate.core.errors import FoveateError
from foveate.models.avsr import AVSRConfig, AVSRForConditionalGeneration, LipEncoder, Rates
from foveate.models.echoing_pixels.configuration import check_ratio
from foveate.training.avsr.recipe import AVSRRecipe

#: Whisper, lip encoder and language model, all trained before.
Parts = tuple[WhisperModel, LipEncoder, LlamaForCausalLM]
#: Most tokens of a transcript.
_NEW_TOKENS = 8


@dataclass(frozen=True)
class Task:
    """Llama-AVSR, Llama-MTSK or MoME: projectors and adapters are trained, all else is frozen.

    Args:
        audio_rates: Of sound; empty: no sound.
        video_rates: Of video; empty: no video.
        options: Fields of `AVSRConfig`.
    """

    audio_rates: tuple[int, ...] = ()
    video_rates: tuple[int, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)

    #: Name of the system whose weights it starts with.
    start = None

    @property
    def reads(self) -> tuple[bool, bool]:
        """Whether sound and video are inputs."""
        return bool(self.audio_rates), bool(self.video_rates)

    @property
    def settings(self) -> list[Rates]:
        """Rates at which the trained model is measured."""
        return [Rates(audio, video) for audio in self.audio_rates or (None,) for video in self.video_rates or (None,)]

    def config(self, recipe: AVSRRecipe, vocab_size: int) -> AVSRConfig:
        """Configuration of the recognizer, which reads features of frozen encoders."""
        fields: dict[str, Any] = {"text_config": recipe.llama(vocab_size), "projector_hidden_size": 2 * recipe.width}
        if self.audio_rates:
            fields |= {"audio_config": recipe.whisper(), "audio_rates": self.audio_rates}
        if self.video_rates:
            fields |= {"video_config": recipe.lips(), "video_rates": self.video_rates}
        return AVSRConfig(**fields, **self.options)

    def build(self, recipe: AVSRRecipe, parts: Parts, vocab_size: int, start: Any) -> AVSRForConditionalGeneration:
        """The untrained recognizer; `start` is None."""
        audio, video, text = parts
        model: Any = AVSRForConditionalGeneration(self.config(recipe, vocab_size))
        model.language_model.load_state_dict(text.state_dict(), strict=False)
        if self.audio_rates:
            model.audio_encoder.load_state_dict(audio.encoder.state_dict())
        if self.video_rates:
            model.video_encoder.load_state_dict(video.state_dict())
        model.freeze_pretrained()
        return model

    def load(self, folder: Path) -> AVSRForConditionalGeneration:
        """The trained recognizer of a folder."""
        return AVSRForConditionalGeneration.from_pretrained(folder)

    def loss(self, model: Any, text: Sequence[Tensor], inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Loss of one batch, and what else the log shows.

        Args:
            model: The recognizer.
            text: Tokens, mask and labels `(B, L)`.
            inputs: Features of sound and video.
        """
        result = model(*text, **inputs)
        shown = {} if result.balance_loss is None else {"balance_loss": float(result.balance_loss.detach())}
        return result.loss, shown

    def transcribe(self, model: Any, prompt: Tensor, setting: Rates, inputs: dict[str, Tensor]) -> Tensor:
        """Tokens `(B, n)` that the model writes at these rates."""
        return model.generate(prompt, setting, max_new_tokens=_NEW_TOKENS, do_sample=False, **inputs)

    def trained_parameters(self, model: Any) -> int:
        """How many numbers were trained."""
        return sum(
            value.numel() for key, value in model.named_parameters() if "projector." in key or ".adapter." in key
        )


class Share(NamedTuple):
    """How many tokens of the pool are kept.

    Args:
        ratio: Their share.
        random: Whether they are drawn at random, as a control, in place of those with the highest scores.
    """

    ratio: float
    random: bool = False


@dataclass(frozen=True)
class PoolTask:
    """EchoingPixels: everything behind the encoders is trained, as by its authors.

    Args:
        ratios: Shares of the pool at which it is trained, all of them in every step, and measured.
        refiner_layers: Bidirectional layers before the selection, which start as copies of the first decoder layers.
        start: Name of the system whose weights it starts with: one that has learned to read the whole pool, as the
            authors start from a trained Qwen2.5-Omni. None: with the language model.

    Raises:
        FoveateError: a ratio is not above 0 and at most 1, or there is none.
    """

    ratios: tuple[float, ...]
    refiner_layers: int
    start: str | None = None

    reads = (True, True)

    def __post_init__(self) -> None:
        if not self.ratios:
            raise FoveateError("a pool needs a ratio, such as 0.2.")
        for ratio in self.ratios:
            check_ratio(ratio)

    @property
    def settings(self) -> list[Share]:
        """Shares at which the trained model is measured; fewer tokens than all are also drawn at random."""
        return [Share(ratio, random) for ratio in self.ratios for random in (False, True) if ratio < 1 or not random]

    def build(self, recipe: AVSRRecipe, parts: Parts, vocab_size: int, start: Any) -> Any:
        """The untrained recognizer.

        The scores start at zero. Random ones would differ more between sound and video than within them, so that the
        first selection, and what is learned from it, would depend on the seed.
        """
        from foveate.training.avsr.pool import PooledRecognizer

        model = PooledRecognizer(recipe.pooled(vocab_size, self.refiner_layers))
        if start is None:
            model.language_model.load_state_dict(parts[2].model.state_dict(), strict=False)
            model.lm_head.load_state_dict(parts[2].lm_head.state_dict())
        else:
            model.load_state_dict(start.state_dict(), strict=False)
        model.language_model.copy_decoder_to_refiner()
        with torch.no_grad():
            for parameter in model.language_model.selector.linear_2.parameters():
                parameter.zero_()
        return model

    def load(self, folder: Path) -> Any:
        """The trained recognizer of a folder."""
        from foveate.training.avsr.pool import PooledRecognizer

        return PooledRecognizer.from_pretrained(folder)

    def loss(self, model: Any, text: Sequence[Tensor], inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Mean loss over the ratios; see `Task.loss`."""
        losses = [model(*text, retention_ratio=ratio, **inputs) for ratio in self.ratios]
        return torch.stack(losses).mean(), {}

    def transcribe(
        self, model: Any, prompt: Tensor, setting: Share, inputs: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Tokens `(B, n)` that the model writes, and the share of sound `(B,)` in what it keeps."""
        return model.generate(prompt, setting.ratio, random=setting.random, max_new_tokens=_NEW_TOKENS, **inputs)

    def trained_parameters(self, model: Any) -> int:
        """How many numbers were trained: all behind the encoders."""
        return model.num_parameters()
