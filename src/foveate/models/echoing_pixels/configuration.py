"""Configuration of EchoingPixels."""

from __future__ import annotations

from os import PathLike
from typing import Any

from transformers import Qwen2_5OmniThinkerConfig
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniTextConfig

from foveate.core.errors import FoveateError

#: Fields of the authors' text configuration under the names here.
_RELEASED_FIELDS = {"av_refiner_layers": "num_refiner_layers", "compression_ratio": "retention_ratio"}
_SYNC_SECTIONS = (18, 18, 18, 10)


class EchoingPixelsTextConfig(Qwen2_5OmniTextConfig):
    r"""Configuration of the language model of EchoingPixels.

    Takes what `Qwen2_5OmniTextConfig` takes, and in addition:

    Args:
        num_refiner_layers (`int`): Bidirectional layers R in front of the selection; 0: none.
        retention_ratio (`float`): Share of the audio and visual tokens that is kept, above 0 and at most 1.
        temperature (`float`): Of the selection weights in training.
        gumbel (`bool`): Whether Gumbel noise is added to the scores in training.
        sync_sections (`list[int]`): Pairs of rotary channels of time, height, width and time again; their sum is half
            of the width of a head.
    """

    model_type = "echoing_pixels_text"

    num_refiner_layers: int = 4
    retention_ratio: float = 0.2
    temperature: float = 1.0
    gumbel: bool = False
    sync_sections: list[int] | tuple[int, ...] = _SYNC_SECTIONS

    def __post_init__(self, **kwargs: Any) -> None:
        self.sync_sections = list(self.sync_sections)
        super().__post_init__(**kwargs)
        half = self.hidden_size // self.num_attention_heads // 2
        if len(self.sync_sections) != 4 or sum(self.sync_sections) != half or min(self.sync_sections) < 0:
            raise FoveateError(
                f"sync_sections {self.sync_sections} must be four numbers whose sum is {half}, half of the width of a "
                "head."
            )
        # The rotary embedding of transformers gives the sections to time, height and width in turn, so that the fourth
        # is time again: this is Sync-RoPE.
        self.rope_parameters = {**(self.rope_parameters or {}), "mrope_section": self.sync_sections}
        check_ratio(self.retention_ratio)
        if not 0 <= self.num_refiner_layers <= self.num_hidden_layers:
            raise FoveateError(
                f"num_refiner_layers must be 0 to {self.num_hidden_layers}, the layers of the language model, not "
                f"{self.num_refiner_layers}."
            )
        if not self.temperature > 0:
            raise FoveateError(f"temperature must be greater than 0, not {self.temperature}.")


class EchoingPixelsConfig(Qwen2_5OmniThinkerConfig):
    r"""Configuration of an [`EchoingPixelsForConditionalGeneration`].

    That of Qwen2.5-Omni's thinker, with [`EchoingPixelsTextConfig`] as `text_config`. Folders of the authors and of
    Qwen2.5-Omni are read too.
    """

    model_type = "echoing_pixels"
    sub_configs = {**Qwen2_5OmniThinkerConfig.sub_configs, "text_config": EchoingPixelsTextConfig}

    def __post_init__(self, **kwargs: Any) -> None:
        text = self.text_config
        if not isinstance(text, EchoingPixelsTextConfig):
            fields = text.to_dict() if text is not None and not isinstance(text, dict) else dict(text or {})
            fields.pop("model_type", None)
            self.text_config = EchoingPixelsTextConfig(**fields)
        super().__post_init__(**kwargs)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read `config.json`, of foveate's own layout, of the authors' or of Qwen2.5-Omni."""
        fields, unused = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        return convert_released_config(fields), unused


def convert_released_config(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields of `EchoingPixelsConfig` from the content of a `config.json` of any of the layouts."""
    thinker = dict(fields.get("thinker_config", fields))
    text = dict(thinker.get("text_config") or {})
    for old, new in _RELEASED_FIELDS.items():
        if old in text:
            text[new] = text.pop(old)
    text.pop("model_type", None)
    return {**thinker, "text_config": text, "model_type": EchoingPixelsConfig.model_type}


def check_ratio(ratio: float) -> float:
    """Refuse a retention ratio that is not above 0 and at most 1."""
    if not 0 < ratio <= 1:
        raise FoveateError(f"retention_ratio must be greater than 0 and at most 1, not {ratio}.")
    return ratio
