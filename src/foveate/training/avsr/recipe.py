"""Settings of the trainings, and the configurations of encoders and language model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import LlamaConfig, WhisperConfig

from foveate.core.errors import FoveateError
from foveate.core.text_files import read_json
from foveate.models.avsr import LipEncoderConfig
from foveate.models.echoing_pixels import EchoingPixelsTextConfig
from foveate.synthetic.spoken_words import NOISES
from foveate.training.recipe_file import read_settings

#: Mel bins and seconds of Whisper's input here, and its frames.
MEL_BINS, SECONDS = 80, 2
AUDIO_FRAMES = 50 * SECONDS
#: Frames of Whisper's encoder per token of a pool, as in Qwen2.5-Omni: sound and video have 25 tokens a second.
AUDIO_RATE = 2
_AT_LEAST_ONE = (
    "utterances", "width", "encoder_layers", "text_layers", "heads", "encoder_steps", "encoder_batch_size",
    "text_steps", "text_batch_size", "steps", "batch_size",
)  # fmt: skip


@dataclass(frozen=True)
class AVSRRecipe:
    """Settings that all trainings share.

    Args:
        utterances: Utterances of the training set, each with one level of noise.
        snrs: Levels of noise in training in dB; None: no noise. They take turns.
        noise: "babble" or "white".
        width: Width of both encoders and of the language model.
        encoder_layers: Blocks of each encoder.
        text_layers: Layers of the language model.
        heads: Attention heads of all of them.
        encoder_steps: Steps in which both encoders learn to name phonemes and visemes.
        encoder_batch_size: Utterances of such a step.
        text_steps: Steps of the language model on text.
        text_batch_size: Texts of such a step.
        steps: Steps of projectors and adapters.
        batch_size: Utterances of such a step.
        learning_rate: Peak rate of all stages.
        seed: Of weights and of the order of the data.
    """

    utterances: int = 3000
    snrs: tuple[float | None, ...] = (None, 10.0, 5.0, 0.0, -5.0)
    noise: str = "babble"
    width: int = 96
    encoder_layers: int = 2
    text_layers: int = 3
    heads: int = 4
    encoder_steps: int = 400
    encoder_batch_size: int = 24
    text_steps: int = 1200
    text_batch_size: int = 64
    steps: int = 1000
    batch_size: int = 32
    learning_rate: float = 2e-3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in _AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise FoveateError(f"{name} is {getattr(self, name)}; the minimum is 1.")
        if self.width % self.heads:
            raise FoveateError(f"width is {self.width}, which {self.heads} heads do not divide.")
        if self.noise not in NOISES:
            raise FoveateError(f"noise is {self.noise!r}; possible are {', '.join(NOISES)}.")
        if not self.snrs:
            raise FoveateError("snrs names no level of noise.")
        if not self.learning_rate > 0:
            raise FoveateError(f"learning_rate must be greater than 0, not {self.learning_rate}.")

    def whisper(self) -> WhisperConfig:
        """Configuration of Whisper, of which the encoder is used."""
        return WhisperConfig(
            d_model=self.width,
            encoder_layers=self.encoder_layers,
            encoder_attention_heads=self.heads,
            encoder_ffn_dim=4 * self.width,
            num_mel_bins=MEL_BINS,
            max_source_positions=AUDIO_FRAMES,
            decoder_layers=1,
            decoder_attention_heads=self.heads,
            decoder_ffn_dim=self.width,
            vocab_size=8,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
        )

    def lips(self) -> LipEncoderConfig:
        """Configuration of the lip encoder."""
        return LipEncoderConfig(
            hidden_size=self.width,
            num_hidden_layers=self.encoder_layers,
            num_attention_heads=self.heads,
            intermediate_size=4 * self.width,
        )

    def llama(self, vocab_size: int) -> LlamaConfig:
        """Configuration of the language model."""
        return LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=self.width,
            intermediate_size=5 * self.width // 2,
            num_hidden_layers=self.text_layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            max_position_embeddings=256,
            pad_token_id=0,
            bos_token_id=5,
            eos_token_id=6,
            tie_word_embeddings=False,
        )

    def pooled(self, vocab_size: int, refiner_layers: int) -> EchoingPixelsTextConfig:
        """Configuration of the language model of EchoingPixels, which the weights of `llama` fit."""
        llama = self.llama(vocab_size)
        half = self.width // self.heads // 2
        section = half * 18 // 64  # the proportions of the paper: 18, 18, 18 and 10
        names = (
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "max_position_embeddings", "pad_token_id", "bos_token_id", "eos_token_id",
            "rms_norm_eps", "rope_parameters",
        )  # fmt: skip
        return EchoingPixelsTextConfig(
            **{name: getattr(llama, name) for name in names},
            num_refiner_layers=refiner_layers,
            gumbel=True,
            sync_sections=(section, section, section, half - 3 * section),
        )


def read_recipe(path: Path) -> AVSRRecipe:
    """The settings of a JSON file; those that it does not name have their defaults.

    Raises:
        FoveateError: the file is invalid, or has an unknown setting.
    """
    try:
        return read_settings(AVSRRecipe, read_json(path), "settings")
    except (ValueError, TypeError) as error:
        raise FoveateError(f"{path} is no recipe of a speech recognizer: {error}") from error
