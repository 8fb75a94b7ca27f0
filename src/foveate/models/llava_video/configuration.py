"""Configuration of LLaVA for clips, with any video connector."""

from __future__ import annotations

from os import PathLike
from typing import Any

from transformers import CONFIG_MAPPING, LlavaConfig

from foveate.core.errors import FoveateError
from foveate.models.llava.configuration import check_vision_tower
from foveate.models.llava_video.conversion import convert_released_config, is_released_config
from foveate.models.video_connectors import video_connector_of_sizes

#: Text encoders that connectors read instructions with, by their `model_type`.
TEXT_ENCODERS = ("clip_text_model", "siglip_text_model")


class FoveateLlavaVideoConfig(LlavaConfig):
    """A vision tower, any video connector of `foveate.models.video_connectors` and a causal language model.

    Takes what `LlavaConfig` of `transformers` takes, and in addition:

    Args:
        connector_type: Name of the video connector.
        connector_options: Options of the connector by name; those that are not named have the defaults of its paper.
        video_token_id: Id of the placeholder of clips.
        instruction_config: Configuration of a CLIP or SigLIP text encoder, for connectors that read the words that a
            clip is asked about; None: the model has none.
        released_vision_tower: Folder or Hub id with the weights of the vision tower, where a checkpoint of the authors
            does not hold them.

    Raises:
        FoveateError: There is no such connector or option, or the vision tower or text encoder is of another kind.
    """

    model_type = "foveate_llava_video"

    vision_config: Any = None
    text_config: Any = None
    connector_type: str = "average"
    connector_options: dict[str, Any] | None = None
    video_token_id: int = 32001
    instruction_config: Any = None
    released_vision_tower: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.instruction_config, dict):
            fields = dict(self.instruction_config)
            kind = fields.pop("model_type", None)
            if kind not in TEXT_ENCODERS:
                raise FoveateError(f"instruction_config is of one of {', '.join(TEXT_ENCODERS)}, not {kind!r}.")
            self.instruction_config = CONFIG_MAPPING[kind](**fields)
        super().__post_init__(**kwargs)
        check_vision_tower(self)
        video_connector_of_sizes(self.connector_type, self.connector_options)  # refuses unknown names and values
        if self.video_token_id == self.image_token_id:
            raise FoveateError(
                f"images and clips need different placeholders, and both have the id {self.image_token_id}."
            )

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read `config.json`, of foveate's own layout or of the authors'."""
        fields, unused = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        return (convert_released_config(fields) if is_released_config(fields) else fields), unused
