"""Checkpoints of video connectors in the layouts of their authors, read by `from_pretrained`.

As those of LLaVA (`foveate.models.llava.conversion`): a flat configuration of the language model with `mm_*` fields.
Its `model_type` says which connector it is. Auto classes do not know these types, some of which are those of other
models too: the class is named, `FoveateLlavaVideoForConditionalGeneration.from_pretrained(folder)`.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from transformers import CONFIG_MAPPING

from foveate.core.errors import FoveateError
from foveate.models.encoders import all_encoders
from foveate.models.llava.conversion import released_vision
from foveate.models.video_connectors import all_video_connectors


def is_released_config(config: dict[str, Any]) -> bool:
    """Whether this content of a `config.json` describes a model of authors: fields of the language model at the top."""
    return "text_config" not in config and any(name.startswith("mm_") for name in config)


def convert_released_config(config: dict[str, Any]) -> dict[str, Any]:
    """Convert the content of a released `config.json` to fields of `FoveateLlavaVideoConfig`.

    The authors mark images and clips with negative numbers, which are no tokens. Placeholders are the last two rows of
    the vocabulary instead, which Qwen pads.

    Raises:
        FoveateError: The model, its options or its vision tower are not supported.
    """
    kind = config.get("model_type")
    found = [cls for cls in all_video_connectors().values() if kind in cls.released_types]
    chosen = [(cls, options) for cls in found if (options := cls.released_options(config)) is not None]
    if len(chosen) != 1:
        possible = sorted({name for cls in all_video_connectors().values() for name in cls.released_types})
        raise FoveateError(
            f"a released model of clips has one of the model types {', '.join(possible)} with the fields of its "
            f"connector, and this is {kind!r}."
        )
    connector, options = chosen[0]
    text_class = CONFIG_MAPPING[connector.released_text_type]
    known = {field.name for field in fields(text_class)} | {"rope_theta", "rope_scaling"}
    text = {name: value for name, value in config.items() if name in known}
    text["model_type"] = connector.released_text_type
    vision, tower = released_vision(config)
    encoder = vision["model_type"] in all_encoders()
    converted = {
        "model_type": "foveate_llava_video",
        "vision_config": vision,
        "text_config": text,
        "image_token_index": config["vocab_size"] - 2,
        "video_token_id": config["vocab_size"] - 1,
        "vision_feature_layer": -1 if encoder else config.get("mm_vision_select_layer", -2),
        "vision_feature_select_strategy": "default" if vision["model_type"] == "clip_vision_model" else "full",
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
        "connector_type": connector.name,
        "connector_options": options,
        "instruction_config": _instruction_config(connector, options, config),
        "released_vision_tower": tower,
        "architectures": ["FoveateLlavaVideoForConditionalGeneration"],
    }
    return converted | {name: config[name] for name in ("dtype", "torch_dtype") if config.get(name) is not None}


def _instruction_config(connector: Any, options: dict[str, Any], config: dict[str, Any]) -> dict[str, Any] | None:
    """Configuration of the text encoder.

    Raises:
        FoveateError: The connector reads instructions, and config.json does not describe their encoder.
    """
    if not connector.without_weights(**options).reads_states:
        return None
    if config.get("instruction_config") is None:
        raise FoveateError(
            f"config.json does not describe the text encoder of the connector {connector.name}: add an "
            "instruction_config to it, the text_config of its SigLIP with its model_type."
        )
    return config["instruction_config"]
