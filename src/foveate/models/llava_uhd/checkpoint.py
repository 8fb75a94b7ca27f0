"""The authors' full-model layout of LLaVA-UHD v3: configuration and weight names, read by `from_pretrained`.

A released folder is a LLaVA checkpoint: a flat configuration of the language model with `mm_*` fields, and
keys `model.vision_tower.vision_tower.*`, `model.mm_projector.proj.*`, `model.layers.*`, `lm_head.weight`.
Both are turned into ours while loading; `save_pretrained` always writes our own layout.
"""

from __future__ import annotations

from dataclasses import fields
from os import PathLike
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming
from transformers.utils import CONFIG_NAME

from foveate.core.errors import FoveateError
from foveate.core.weights import file_of
from foveate.models.vit_uhd.configuration import ViTUHDConfig

# Model types of released configurations, and the language model that a flat one describes.
RELEASED_MODEL_TYPES = {"llava_uhd_v3": "qwen2", "llava_qwen": "qwen2", "llava_qwen3": "qwen3"}

# Released names on the left. Patterns match no key of our own layout, where the language model is
# `language_model`.
RELEASED_KEYS = {
    r"^model\.vision_tower\.vision_tower\.": "model.vision_tower.",
    r"^model\.mm_projector\.proj\.0\.": "model.multi_modal_projector.linear_1.",
    r"^model\.mm_projector\.proj\.2\.": "model.multi_modal_projector.linear_2.",
    r"^model\.layers\.": "model.language_model.layers.",
    r"^model\.embed_tokens\.": "model.language_model.embed_tokens.",
    r"^model\.norm\.": "model.language_model.norm.",
}

# In LLaVA's state dicts, used by no forward pass of this model: the embedding that other variants put at row
# ends.
UNUSED_KEYS = [r"^model\.image_newline$"]

# The first id after the tokenizer of Qwen2, whose models have spare rows there. The authors mark images with
# -200, which is no token, so that their configurations do not say which id a placeholder has.
QWEN2_IMAGE_TOKEN_ID = 151646


class ReleasedKey(WeightRenaming):
    """A renaming for loading only: saved again, a model keeps our names."""

    __slots__ = ()

    def reverse_transform(self) -> WeightRenaming:
        """A renaming that matches nothing."""
        return WeightRenaming(r"(?!)", "")


def register_released_keys(model_type: str) -> None:
    """Let `from_pretrained` of every model with this `model_type` read released keys."""
    renamings: list[WeightConverter | WeightRenaming] = [
        ReleasedKey(source, target) for source, target in RELEASED_KEYS.items()
    ]
    register_checkpoint_conversion_mapping(model_type, renamings, overwrite=True)


def is_released_config(config: dict[str, Any]) -> bool:
    """Whether this content of a `config.json` describes a released LLaVA-UHD v3."""
    return config.get("model_type") in RELEASED_MODEL_TYPES


def is_released(name_or_path: str | PathLike[str], **where: Any) -> bool:
    """Whether a folder or Hub id holds a released LLaVA-UHD v3.

    `where` is what `from_pretrained` takes to find and get files: `revision`, `local_files_only`, ...
    """
    if file_of(name_or_path, CONFIG_NAME, **where) is None:
        return False
    return is_released_config(PreTrainedConfig.get_config_dict(name_or_path, **where)[0])


def convert_released_config(config: dict[str, Any]) -> dict[str, Any]:
    """Turn the content of a released `config.json` into fields of `LlavaUHDConfig`.

    The language model's fields stand at the top, or in `text_config`. The vision tower's stand in
    `vision_config`; the training code saves no more than the tower's folder (`mm_vision_tower`), which is
    read where it exists, and else the tower is the released one (patch 10, stages after blocks 4 and 18,
    width 1152), the default of `ViTUHDConfig`.

    Raises:
        FoveateError: for a projector or a vision tower that is not that of LLaVA-UHD v3.
    """
    projector = config.get("mm_projector_type", "mlp")
    if projector != "mlp":
        raise FoveateError(f"mm_projector_type {projector!r} is not supported: LLaVA-UHD v3 has the projector 'mlp'")
    text_config = _text_config(config)
    image_token_id = config.get("image_token_id", config.get("image_token_index"))
    if image_token_id is None or image_token_id < 0:
        image_token_id = min(QWEN2_IMAGE_TOKEN_ID, text_config["vocab_size"] - 1)
    converted = {
        "model_type": "llava_uhd",
        "vision_config": _vision_config(config),
        "text_config": text_config,
        "image_token_id": image_token_id,
        "tie_word_embeddings": bool(text_config.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
        "architectures": ["LlavaUHDForConditionalGeneration"],
    }
    return converted | {name: config[name] for name in ("dtype", "torch_dtype") if config.get(name) is not None}


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    """Fields of the language model's configuration, with its `model_type`."""
    text = config.get("text_config")
    if text is None:
        text = {name: value for name, value in config.items() if name not in ("model_type", "architectures")}
        text["model_type"] = RELEASED_MODEL_TYPES[config["model_type"]]
    model_type = text.get("model_type", RELEASED_MODEL_TYPES[config["model_type"]])
    if model_type not in CONFIG_MAPPING:
        raise FoveateError(f"text_config has model_type {model_type!r}, which transformers does not know")
    # A flat configuration holds `mm_*` fields and the trainer's too; only what the language model defines is
    # kept.
    config_class = CONFIG_MAPPING[model_type]
    known = {field.name for field in fields(config_class)} | {"rope_theta", "rope_scaling"}
    remaining = {name: value for name, value in text.items() if name in known}
    return {"vocab_size": config_class().vocab_size} | remaining | {"model_type": model_type}


def _vision_config(config: dict[str, Any]) -> dict[str, Any]:
    """Fields of the vision tower's configuration."""
    vision = config.get("vision_config")
    if isinstance(vision, PreTrainedConfig):
        vision = vision.to_dict()
    tower = config.get("mm_vision_tower") or config.get("vision_tower")
    if vision is None and isinstance(tower, str) and (Path(tower) / "config.json").is_file():
        vision = ViTUHDConfig.from_pretrained(tower).to_dict()
    if vision is None:
        vision = {}
        released = ViTUHDConfig().hidden_size
        if config.get("mm_hidden_size", released) != released:
            raise FoveateError(
                f"config.json does not describe its vision tower ({tower!r} is no folder here), and with "
                f"mm_hidden_size {config['mm_hidden_size']} it is not the released one ({released}): "
                "add a vision_config to config.json"
            )
    return ViTUHDConfig.from_dict(vision).to_dict()
