"""Configuration of LLaVA-UHD."""

from os import PathLike
from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid, encoder_grid
from foveate.models.connectors.connector import Connector
from foveate.models.connectors.registry import connector_of_sizes, options_of_config
from foveate.models.encoders import EncoderConfig, encoder_named
from foveate.models.llava_uhd.checkpoint import convert_released_config, is_released_config
from foveate.models.vit_uhd.configuration import RELEASED_MODEL_TYPE, ViTUHDConfig


class LlavaUHDConfig(PreTrainedConfig):
    """A vision tower, a connector and any causal language model of `transformers`.

    The vision tower is a ViT-UHD, or any encoder of `foveate.models.encoders`, which then reads images at their native
    size, as multiples of what it needs.

    Args:
        vision_config: configuration of the vision tower: `ViTUHDConfig`, that of an encoder, or the fields of one of
            them as a dict, with `model_type` for an encoder.
        text_config: configuration of the language model (any of `AutoConfig`, or its fields as a dict with
            `model_type`; Qwen2 where that is missing).
        image_token_id: id of the placeholder token that image tokens replace. `image_token_index` is the same
            field.
        projector_hidden_act: activation of the connector.
        multimodal_projector_bias: whether the connector's layers have biases.
        tie_word_embeddings: whether the output layer is the input embedding; follows `text_config` where not
            given.
        connector_type: name of the connector (`foveate.models.connectors`).
        connector_options: options of the connector by name; those that are not named have the defaults of its paper.
        num_voco_tokens: VoCo tokens after every image, through which text sees it (`foveate.models.llava_uhd.voco`); 0:
            text sees images themselves.
        voco_token_id: id of the VoCo token.
        vision_remember_layers: layers of the language model before which visual tokens attend to the encoder's features
            again (`foveate.models.llava_uhd.vision_remember`); empty: none.

    Raises:
        FoveateError: if `image_token_id` is not the id of a token, there are VoCo tokens without an id, or there is no
            such connector, option or encoder.

    Example:
        >>> from transformers import Qwen3Config
        >>> config = LlavaUHDConfig(
        ...     vision_config=ViTUHDConfig(hidden_size=192, num_attention_heads=6, patch_size=8),
        ...     text_config=Qwen3Config(hidden_size=256, vocab_size=260),
        ...     image_token_id=259,
        ... )
    """

    model_type = "llava_uhd"
    sub_configs: ClassVar[dict[str, type]] = {"vision_config": AutoConfig, "text_config": AutoConfig}
    attribute_map: ClassVar[dict[str, str]] = {"image_token_index": "image_token_id"}

    # Dicts, configurations or None as arguments, always configurations afterwards.
    vision_config: Any = None
    text_config: Any = None
    image_token_id: int = 151646
    projector_hidden_act: str = "gelu"
    multimodal_projector_bias: bool = True
    tie_word_embeddings: bool | None = None
    connector_type: str = "mlp"
    connector_options: dict[str, Any] | None = None
    num_voco_tokens: int = 0
    voco_token_id: int | None = None
    vision_remember_layers: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.vision_config, PreTrainedConfig):
            self.vision_config = _vision_config(dict(self.vision_config or {}))
        if not isinstance(self.text_config, PreTrainedConfig):
            fields = dict(self.text_config or {})
            self.text_config = AutoConfig.for_model(fields.pop("model_type", "qwen2"), **fields)
        if self.tie_word_embeddings is None:
            self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))
        self.vision_remember_layers = sorted(self.vision_remember_layers or [])
        super().__post_init__(**kwargs)
        if not isinstance(self.image_token_id, int) or self.image_token_id < 0:
            raise FoveateError(f"image_token_id must be a token, 0 or more, not {self.image_token_id!r}")
        if not isinstance(self.num_voco_tokens, int) or self.num_voco_tokens < 0:
            raise FoveateError(f"num_voco_tokens must be a number from 0 on, not {self.num_voco_tokens!r}")
        if self.num_voco_tokens and self.voco_token_id is None:
            raise FoveateError(f"num_voco_tokens is {self.num_voco_tokens}, and voco_token_id is not given")
        connector = connector_of_sizes(self.connector_type, options_of_config(self))  # refuses unknown names and values
        if connector.prefusion_layers:
            raise FoveateError(
                f"LLaVA-UHD has no pre-fusion: set prefusion_layers of the connector {self.connector_type} to 0, or "
                "choose foveate_llava."
            )
        if self.vision_remember_layers and not connector.per_token:
            raise FoveateError(
                "Vision Remember needs every token of the encoder, and the connector "
                f"{self.connector_type} merges them: choose mlp"
            )

    @property
    def square_size(self) -> int:
        """Side in pixels of the squares that images are packed in: a patch, or what sides are multiples of."""
        vision = self.vision_config
        return vision.multiple if isinstance(vision, EncoderConfig) else vision.patch_size

    def encoder_grid(self, rows: int, columns: int) -> Grid:
        """Rows and columns of the tokens that leave the vision tower, of an image of so many squares.

        Raises:
            FoveateError: the vision tower cannot read images of this size.
        """
        return encoder_grid(self.vision_config, rows * self.square_size, columns * self.square_size)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read `config.json`, of our own or of the released layout."""
        fields, unused = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        return (convert_released_config(fields) if is_released_config(fields) else fields), unused


def token_multiple(vision: Any, connector: Connector) -> int:
    """Patches or squares, in tokens of the image processor, that image sides must be multiples of for a connector.

    Args:
        vision: configuration of the vision tower.
        connector: the connector, with or without weights.
    """
    if connector.multiple == 1 or not isinstance(vision, EncoderConfig):
        return connector.multiple
    side = vision.image_size
    grid, twice = vision.output_grid(side, side), vision.output_grid(2 * side, 2 * side)
    squares = side // vision.multiple
    if twice != (2 * grid.rows, 2 * grid.columns) or squares % grid.rows:  # as many tokens for every size
        return connector.multiple
    return connector.multiple * (squares // grid.rows)


def _vision_config(fields: dict[str, Any]) -> PreTrainedConfig:
    """The configuration of a ViT-UHD, or of the encoder that `model_type` names.

    Raises:
        FoveateError: there is no such encoder, or a field has an impossible value.
    """
    kind = fields.get("model_type")
    if kind in (None, ViTUHDConfig.model_type, RELEASED_MODEL_TYPE):
        return ViTUHDConfig.from_dict(fields)
    config_class: Any = encoder_named(kind).config_class
    return config_class.from_dict(fields)


class ReleasedLlavaUHDConfig(LlavaUHDConfig):
    """What `AutoConfig` finds under the model type of the release; it always gives a `LlavaUHDConfig`."""

    model_type = "llava_uhd_v3"

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> LlavaUHDConfig:
        """Convert the content of a released `config.json`."""
        return LlavaUHDConfig.from_dict(convert_released_config(config_dict), **kwargs)
