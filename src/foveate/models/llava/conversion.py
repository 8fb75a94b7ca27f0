"""Configurations in the layout of LLaVA-1.5 and of models that were trained in its code base.

Such a `config.json` is a flat configuration of the language model with `mm_*` fields. It is converted while loading, as
the weights are (`foveate.models.llava.released_weights`); `save_pretrained` always writes foveate's own layout. Where
the vision tower is not in the checkpoint, as in those that were trained with a frozen one, its weights are read from
`mm_vision_tower`.
"""

from __future__ import annotations

from dataclasses import fields
from os import PathLike
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, LlavaConfig, PreTrainedConfig
from transformers.utils import CONFIG_NAME

from foveate.core.errors import FoveateError
from foveate.core.weights import DATA_ONLY, file_of
from foveate.models.connectors.registry import all_connectors, connector_named
from foveate.models.encoders import all_encoders

#: Model types of released configurations, with those of their language models.
LANGUAGE_MODELS = {
    "llava": "llama",
    "llava_llama": "llama",
    "llava_mini_llama": "llama",
    "oryx_llama": "llama",
    "oryx_qwen": "qwen2",
}
#: The vision tower of LLaVA-1.5, whose configuration `LlavaConfig` has as its default.
RELEASED_TOWER = "clip-vit-large-patch14-336"

#: Vocabulary of Llama 3, whose tokenizer has no unknown token, and its reserved token that stands for images here.
LLAMA_3_VOCABULARY, LLAMA_3_IMAGE = 128256, 128002


def is_released_config(config: dict[str, Any]) -> bool:
    """Whether this content of a `config.json` describes a released LLaVA: fields of the language model at the top."""
    return config.get("model_type") in LANGUAGE_MODELS and "mm_projector_type" in config and "text_config" not in config


def is_released(name_or_path: str | PathLike[str], **where: Any) -> bool:
    """Whether a folder or Hub id holds a released LLaVA; `where` is what `from_pretrained` takes to find files."""
    if file_of(name_or_path, CONFIG_NAME, **where) is None:
        return False
    return is_released_config(PreTrainedConfig.get_config_dict(name_or_path, **where)[0])


def convert_released_config(config: dict[str, Any]) -> dict[str, Any]:
    """Convert the content of a released `config.json` to fields of `FoveateLlavaConfig`.

    The authors mark images with -200, which is no token. Placeholders are the language model's unknown token (0)
    instead, or a reserved token of Llama 3, where 0 is "!": they never occur in text, and the vocabulary needs no
    further row. Where the authors have learned vectors around images, as Oryx does, the vocabulary gets a row for the
    placeholder and one for each of the vectors.

    Raises:
        FoveateError: The projector, the vision tower or the choice of features is not supported.
    """
    language_model = LANGUAGE_MODELS[config["model_type"]]
    known = {field.name for field in fields(CONFIG_MAPPING[language_model])} | {"rope_theta", "rope_scaling"}
    text: dict[str, Any] = {name: value for name, value in config.items() if name in known}
    text["model_type"] = language_model
    if config["model_type"] == "oryx_qwen":
        text.pop("rope_scaling", None)  # as in the authors' code, which ignores it
    if config.get("mm_vision_select_feature", "patch") != "patch":
        raise FoveateError(
            f"mm_vision_select_feature {config['mm_vision_select_feature']!r} is not supported: the connectors read "
            "patches, which is 'patch'."
        )
    vision, tower = released_vision(config)
    connector, options = _connector(config)
    layer = config.get("mm_vision_select_layer", -2)
    placeholder = _placeholder(config)
    if vectors := len(connector_named(connector).released_vectors):
        placeholder = text["vocab_size"]
        text["vocab_size"] += 1 + vectors
    converted = {
        "model_type": "foveate_llava",
        "vision_config": vision,
        "text_config": text,
        "image_token_index": placeholder,
        "vision_feature_layer": -1 if vision["model_type"] in all_encoders() else layer,
        "vision_feature_select_strategy": "default" if vision["model_type"] == "clip_vision_model" else "full",
        "image_seq_length": _tokens(vision),
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
        "connector_type": connector,
        "connector_options": options,
        "released_vision_tower": tower,
        "architectures": ["FoveateLlavaForConditionalGeneration"],
    }
    return converted | {name: config[name] for name in ("dtype", "torch_dtype") if config.get(name) is not None}


def _placeholder(config: dict[str, Any]) -> int:
    """Id of the placeholder."""
    unused = LLAMA_3_IMAGE if config.get("vocab_size", 0) >= LLAMA_3_VOCABULARY else 0
    return max(config.get("image_token_index", unused), unused)


def _connector(config: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and options of the connector."""
    # MQT names its connector elsewhere; `mm_projector_type` then is a default that its code does not read.
    kind = config.get("query_abstractor_type") or config["mm_projector_type"]
    connectors = all_connectors().values()
    found = {
        connector.name: options
        for connector in connectors
        if kind in connector.released_types and (options := connector.released_options(config)) is not None
    }
    if not found:
        possible = sorted({one for connector in connectors for one in connector.released_types})
        raise FoveateError(f"mm_projector_type {kind!r} is not supported; possible are {', '.join(possible)}.")
    return min(found.items(), key=lambda one: one[0] == "mlp")  # other connectors extend the MLP of LLaVA


def released_vision(config: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Fields of the vision tower's configuration, and where its weights are."""
    tower = config.get("mm_vision_tower") or config.get("vision_tower")
    fields = config.get("vision_config")
    if fields is None and isinstance(tower, str) and Path(tower).is_dir():
        found = AutoConfig.from_pretrained(tower, **DATA_ONLY)
        fields = getattr(found, "vision_config", found).to_dict()
    if fields is None and isinstance(tower, str) and tower.endswith(RELEASED_TOWER):
        default: Any = LlavaConfig().vision_config
        fields = default.to_dict()
    for encoder in all_encoders().values():
        config_class: Any = encoder.config_class
        if (released := config_class.released_fields(config, fields)) is not None:
            fields = released
            break
    if fields is None:
        raise FoveateError(
            f"config.json does not describe its vision tower ({tower!r} is no folder here, and not "
            f"{RELEASED_TOWER}): add a vision_config to config.json."
        )
    # Oryx writes the kind of the tower before its place.
    return fields, tower.removeprefix(f"{fields['model_type']}:") if isinstance(tower, str) else None


def _tokens(vision: dict[str, Any]) -> int:
    """Tokens of an image in the vision tower."""
    side = vision["image_size"]
    if (encoder := all_encoders().get(vision["model_type"])) is None:
        return (side // vision["patch_size"]) ** 2
    config_class: Any = encoder.config_class
    return config_class(**vision).output_grid(side, side).size
