"""Configurations of audio-visual speech recognition and of its lip encoder."""

from __future__ import annotations

from itertools import product
from typing import Any

from transformers import AutoConfig, WhisperConfig
from transformers.configuration_utils import PreTrainedConfig

from foveate.core.errors import FoveateError
from foveate.models.avsr.rates import COMPRESSIONS, Rates

ADAPTERS = ("lora", "mome")
LORA_SCHEMES = ("shared", "per_rate", "shared_and_per_rate")
PLACEMENTS = ("layer", "attention", "mlp")


class LipEncoderConfig(PreTrainedConfig):
    r"""Configuration of a [`LipEncoder`]: convolutions in space and time, then a transformer over the frames.

    Args:
        image_size (`int`): Side of a frame in pixels, a multiple of 8.
        conv_channels (`int`): Channels of the first convolution; the later ones have two and four times as many.
        hidden_size (`int`): Width D of the features.
        num_hidden_layers (`int`): Blocks of the transformer.
        num_attention_heads (`int`): Heads of every block.
        intermediate_size (`int`): Width of an MLP.
        initializer_range (`float`): Standard deviation of initial weights.
    """

    model_type = "lip_encoder"

    image_size: int = 32
    conv_channels: int = 16
    hidden_size: int = 96
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    intermediate_size: int = 384
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.image_size < 8 or self.image_size % 8:
            raise FoveateError(f"image_size of a lip encoder must be a multiple of 8, not {self.image_size}.")
        if self.hidden_size % self.num_attention_heads:
            raise FoveateError(
                f"hidden_size {self.hidden_size} of a lip encoder is no multiple of {self.num_attention_heads} heads."
            )


class AVSRConfig(PreTrainedConfig):
    r"""Configuration of an [`AVSRForConditionalGeneration`]; the defaults are those of MoME's and Llama-MTSK's papers.

    - Llama-AVSR (arXiv 2409.12319): one rate per modality, `adapter="lora"`, `lora_scheme="shared"`.
    - Llama-MTSK (arXiv 2503.06362): several rates; "MS", "SS" and "MSS" of the paper are the schemes `"shared"`,
      `"per_rate"` and `"shared_and_per_rate"`.
    - MoME (arXiv 2510.04136): several rates and `adapter="mome"`.

    Args:
        text_config (`dict` or `PreTrainedConfig`): The causal language model, Llama by default.
        audio_config (`dict` or `WhisperConfig`, *optional*): Of Whisper, whose encoder is used; None: no sound.
        video_config (`dict` or `LipEncoderConfig`, *optional*): The video encoder; None: video features are given.
        video_hidden_size (`int`, *optional*): Width of video features where no encoder makes them (1024 for
            AV-HuBERT-Large); without encoder and width the model reads no video.
        audio_rates (`list[int]`): Rates of sound that the model is trained for.
        video_rates (`list[int]`): Rates of video.
        compression (`str`): `"average"` or `"stack"`, see `compress_frames`.
        projector_hidden_size (`int`, *optional*): Hidden width of the projectors; None: width of the language model.
        projector_norm (`bool`): Whether projectors end in a layer norm.
        adapter (`str`): `"lora"`, on queries and values of every layer, or `"mome"`.
        lora_scheme (`str`): `"shared"`, `"per_rate"` or `"shared_and_per_rate"`.
        lora_reduction (`int`): Width of the language model over the rank of LoRA.
        lora_alpha (`float`): LoRA is scaled by alpha / reduction, as in the authors' code.
        num_experts (`int`): Routed experts N_r of MoME.
        num_experts_per_token (`int`): Routed experts K of a token.
        num_shared_experts (`int`): Experts N_s of every token.
        expert_size (`int`): Bottleneck of an expert.
        mome_placement (`str`): What experts are parallel to: `"layer"`, `"attention"` or `"mlp"`.
        normalize_gates (`bool`): Whether the K gates are divided by their sum.
        balance_weight (`float`): Weight of the load-balancing loss.
        audio_start_token_id, audio_end_token_id, video_start_token_id, video_end_token_id (`int`): Tokens around the
            modalities.

    Raises:
        FoveateError: A value is impossible, or the model reads neither sound nor video.
    """

    model_type = "avsr"
    has_no_defaults_at_init = True  # it reads sound, video or both: one has to be named
    sub_configs = {
        "text_config": AutoConfig,
        "audio_config": WhisperConfig,
        "video_config": LipEncoderConfig,
    }

    text_config: Any = None
    audio_config: Any = None
    video_config: Any = None
    video_hidden_size: int | None = None
    audio_rates: list[int] | tuple[int, ...] = (4, 16)
    video_rates: list[int] | tuple[int, ...] = (2, 5)
    compression: str = "average"
    projector_hidden_size: int | None = None
    projector_norm: bool = True
    adapter: str = "lora"
    lora_scheme: str = "shared"
    lora_reduction: int = 64
    lora_alpha: float = 8.0
    num_experts: int = 23
    num_experts_per_token: int = 4
    num_shared_experts: int = 1
    expert_size: int = 12
    mome_placement: str = "layer"
    normalize_gates: bool = False
    balance_weight: float = 0.01
    audio_start_token_id: int = 1
    audio_end_token_id: int = 2
    video_start_token_id: int = 3
    video_end_token_id: int = 4

    def __post_init__(self, **kwargs: Any) -> None:
        if self.text_config is None:
            self.text_config = {}
        if isinstance(self.text_config, dict):
            fields = dict(self.text_config)
            self.text_config = AutoConfig.for_model(fields.pop("model_type", "llama"), **fields)
        if isinstance(self.audio_config, dict):
            self.audio_config = WhisperConfig(**self.audio_config)
        if isinstance(self.video_config, dict):
            self.video_config = LipEncoderConfig(**self.video_config)
        self.audio_rates, self.video_rates = list(self.audio_rates), list(self.video_rates)
        super().__post_init__(**kwargs)
        if self.video_config is not None:
            self.video_hidden_size = self.video_config.hidden_size
        if not self.reads_audio and not self.reads_video:
            raise FoveateError("an avsr model needs audio_config, video_config or video_hidden_size.")
        for name in ("audio_rates", "video_rates"):
            rates = getattr(self, name)
            if not rates or any(type(rate) is not int or rate < 1 for rate in rates) or len({*rates}) < len(rates):
                raise FoveateError(f"{name} must be different whole numbers from 1 on, not {rates}.")
        for name, possible in (
            ("compression", COMPRESSIONS),
            ("adapter", ADAPTERS),
            ("lora_scheme", LORA_SCHEMES),
            ("mome_placement", PLACEMENTS),
        ):
            if getattr(self, name) not in possible:
                raise FoveateError(f"{name} must be {', '.join(possible)}, not {getattr(self, name)!r}.")
        for name in ("lora_reduction", "num_experts", "num_experts_per_token", "expert_size"):
            if getattr(self, name) < 1:
                raise FoveateError(f"{name} is {getattr(self, name)}; the minimum is 1.")
        if self.num_shared_experts < 0:
            raise FoveateError(f"num_shared_experts is {self.num_shared_experts}; the minimum is 0.")
        if self.num_experts_per_token > self.num_experts:
            raise FoveateError(
                f"a token cannot have {self.num_experts_per_token} of {self.num_experts} routed experts."
            )

    @property
    def reads_audio(self) -> bool:
        """Whether sound is an input."""
        return self.audio_config is not None

    @property
    def reads_video(self) -> bool:
        """Whether video is an input."""
        return self.video_hidden_size is not None

    @property
    def all_rates(self) -> list[Rates]:
        """All combinations of rates, the finest first as they are listed."""
        audio = self.audio_rates if self.reads_audio else [None]
        video = self.video_rates if self.reads_video else [None]
        return [Rates(*pair) for pair in product(audio, video)]

    def rates(self, value: Any = None) -> Rates:
        """Rates of a call; None: the first ones.

        Raises:
            FoveateError: the model is not trained for them.
        """
        if value is None:
            return self.all_rates[0]
        rates = Rates.of(value)
        if rates not in self.all_rates:
            possible = "; ".join(map(str, self.all_rates))
            raise FoveateError(f"the model has no rates {rates}; possible are {possible}.")
        return rates
