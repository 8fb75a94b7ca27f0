"""Configuration of LLaVA with any connector."""

from os import PathLike
from typing import Any

from transformers import LlavaConfig, PreTrainedConfig

from foveate.core.errors import FoveateError
from foveate.models.connectors.registry import connector_of_sizes, options_of_config
from foveate.models.encoders import EncoderConfig, all_encoders
from foveate.models.llava.conversion import convert_released_config, is_released_config


def check_vision_tower(config: Any) -> None:
    """Check the vision tower of a LLaVA-like configuration.

    Raises:
        FoveateError: It is of another kind, or gives [CLS] in another way than the configuration reads it.
    """
    kind, towers = config.vision_config.model_type, ("clip_vision_model", "siglip_vision_model")
    if isinstance(config.vision_config, EncoderConfig):
        if config.vision_feature_select_strategy != "full":
            raise FoveateError(
                f"the encoder {kind} gives [CLS] and registers apart from the tokens of the image: "
                "vision_feature_select_strategy must be 'full'."
            )
    elif kind not in towers:
        possible = ", ".join((*towers, *all_encoders()))
        raise FoveateError(f"the vision tower of a {config.model_type} model is one of {possible}, not {kind}.")


class FoveateLlavaConfig(LlavaConfig):
    """A vision tower, any connector of `foveate.models.connectors` and a causal language model.

    The vision tower is CLIP, SigLIP, or any encoder of `foveate.models.encoders`, which needs
    `vision_feature_select_strategy="full"`, because it gives [CLS] and registers apart from the tokens of the image.

    Takes what `LlavaConfig` of `transformers` takes, and in addition:

    Args:
        connector_type: Name of the connector.
        connector_options: Options of the connector by name; those that are not named have the defaults of its paper.
        released_vision_tower: Folder or Hub id with the weights of the vision tower, where a checkpoint of the authors
            does not hold them.

    Raises:
        FoveateError: There is no such connector or option, or the vision tower is of another kind.

    Example:
        >>> from transformers import CLIPVisionConfig, LlamaConfig
        >>> config = FoveateLlavaConfig(
        ...     vision_config=CLIPVisionConfig(hidden_size=64, num_attention_heads=4, image_size=56, patch_size=14),
        ...     text_config=LlamaConfig(hidden_size=64, num_attention_heads=4),
        ...     connector_type="tokenpacker",
        ...     connector_options={"scale": 2},
        ... )
    """

    model_type = "foveate_llava"

    # Dicts, configurations or None as arguments, always configurations afterwards.
    vision_config: Any = None
    text_config: Any = None
    connector_type: str = "mlp"
    connector_options: dict[str, Any] | None = None
    released_vision_tower: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        check_vision_tower(self)
        connector_of_sizes(self.connector_type, options_of_config(self))  # refuses unknown names and values

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read `config.json`, of foveate's own layout or of the authors'."""
        fields, unused = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        return (convert_released_config(fields) if is_released_config(fields) else fields), unused


class ReleasedLlavaConfig(FoveateLlavaConfig):
    """What `AutoConfig` finds under a model type of a release; it always gives a `FoveateLlavaConfig`."""

    model_type = "llava_llama"

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> PreTrainedConfig:
        """Convert the content of a released `config.json`."""
        fields = convert_released_config(config_dict) if is_released_config(config_dict) else config_dict
        return FoveateLlavaConfig.from_dict(fields, **kwargs)


class ReleasedLlavaMiniConfig(ReleasedLlavaConfig):
    """`ReleasedLlavaConfig` under the model type of LLaVA-Mini."""

    model_type = "llava_mini_llama"


class ReleasedOryxQwenConfig(ReleasedLlavaConfig):
    """`ReleasedLlavaConfig` under the model type of Oryx with Qwen2."""

    model_type = "oryx_qwen"


class ReleasedOryxLlamaConfig(ReleasedLlavaConfig):
    """`ReleasedLlavaConfig` under the model type of Oryx with Yi, which is built like Llama."""

    model_type = "oryx_llama"


#: One for every model type of a release that `transformers` does not know.
RELEASED_CONFIGS = (ReleasedLlavaConfig, ReleasedLlavaMiniConfig, ReleasedOryxQwenConfig, ReleasedOryxLlamaConfig)
