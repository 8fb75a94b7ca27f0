"""Configuration of a vision transformer with registers."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig

from foveate.core.errors import FoveateError
from foveate.models.encoders.configuration import EncoderConfig
from foveate.models.encoders.registers.towers import LAYOUTS

#: Fields that the tower's configuration has, too.
SIZES = ("num_channels", "image_size", "patch_size", "hidden_size", "num_hidden_layers")
SHARED = (*SIZES, "initializer_range")
#: Fields of backbones, which follow from the number of blocks and say nothing here.
BACKBONE = ("out_features", "out_indices", "stage_names")


class RegistersConfig(EncoderConfig):
    """Configuration of a [`RegistersModel`]; the defaults are DINOv2-B/14 with 16 registers.

    Args:
        vision_config (`dict` or `PreTrainedConfig`): Configuration of the vision transformer, with its `model_type`:
            `clip_vision_model`, `siglip_vision_model` or `dinov2`. The fields that [`EncoderConfig`] takes are those of
            this configuration where they are not named, and replace them where they are.
        num_registers (`int`): Registers, 0 or more.
    """

    model_type = "registers"
    sub_configs: ClassVar[dict[str, type]] = {"vision_config": AutoConfig}

    vision_config: Any = None
    num_registers: int = 16
    num_channels: Any = None
    image_size: Any = None
    patch_size: Any = None
    hidden_size: Any = None
    num_hidden_layers: Any = None
    initializer_range: Any = None

    def __post_init__(self, **kwargs: Any) -> None:
        named = {name: value for name in SHARED if (value := getattr(self, name)) is not None}
        for name in named.keys() & set(SIZES):
            self.positive(name)
        tower = self.vision_config = _tower_config(self.vision_config, named)
        for name in SHARED:
            setattr(self, name, getattr(tower, name, getattr(EncoderConfig, name)))
        super().__post_init__(**kwargs)

    def check(self) -> None:
        """See `EncoderConfig.check`."""
        if type(self.num_registers) is not int or self.num_registers < 0:
            raise FoveateError(
                f"num_registers of the encoder registers must be a whole number from 0 on, not {self.num_registers!r}."
            )
        heads = self.vision_config.num_attention_heads
        if self.hidden_size % heads:
            raise FoveateError(
                f"the {heads} heads of the vision transformer do not divide its width {self.hidden_size}."
            )


def _tower_config(config: Any, named: dict[str, Any]) -> PreTrainedConfig:
    """The configuration of a tower without the parts that no token of an image depends on.

    Args:
        config: Of the tower.
        named: Fields that replace its own.

    Raises:
        FoveateError: It is of another kind, or has an impossible field.
    """
    if config is None:
        config = {"model_type": "dinov2"}
    if isinstance(config, PreTrainedConfig):
        config = config.to_dict()
    kind = config.get("model_type")
    if kind not in LAYOUTS:
        raise FoveateError(f"vision_config of the encoder registers must be one of {', '.join(LAYOUTS)}, not {kind}.")
    fields = {name: value for name, value in config.items() if name not in ("model_type", *BACKBONE)}
    try:
        return AutoConfig.for_model(kind, **{**fields, **named, **LAYOUTS[kind].without})
    except (TypeError, ValueError) as error:
        raise FoveateError(f"vision_config of the encoder registers: {' '.join(str(error).split())[:200]}") from error
