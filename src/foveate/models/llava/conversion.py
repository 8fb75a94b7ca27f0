"""The authors' layout of LLaVA-1.5 and of connectors that were trained in its code base, read by `from_pretrained`.

Such a folder holds a flat configuration of the language model with `mm_*` fields, and the keys
`model.mm_projector.*`, `model.vision_tower.vision_tower.*`, `model.layers.*` and `lm_head.weight`. Both are converted
while loading; `save_pretrained` always writes foveate's own layout. Where the vision tower is not in the checkpoint, as
in those that were trained with a frozen one, its weights are read from `mm_vision_tower`.
"""

from __future__ import annotations

from dataclasses import fields
from os import PathLike
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, LlavaConfig, PreTrainedConfig
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Chunk, WeightConverter, WeightRenaming
from transformers.utils import CONFIG_NAME

from foveate.core.errors import FoveateError
from foveate.core.weights import DATA_ONLY, file_of
from foveate.models.connectors.registry import all_connectors, connector_named
from foveate.models.encoders import all_encoders

#: Model types of released configurations.
RELEASED_MODEL_TYPES = ("llava", "llava_llama", "llava_mini_llama")
#: The vision tower of LLaVA-1.5, whose configuration `LlavaConfig` has as its default.
RELEASED_TOWER = "clip-vit-large-patch14-336"

#: Released names on the left, except those of connectors. No pattern matches a name of foveate's own layout.
RELEASED_KEYS = {
    r"^model\.vision_tower\.vision_tower\.": "model.vision_tower.",
    r"^model\.layers\.": "model.language_model.layers.",
    r"^model\.embed_tokens\.": "model.language_model.embed_tokens.",
    r"^model\.norm\.": "model.language_model.norm.",
    r"^model\.prefusion_layers\.": "model.prefusion.layers.",
}
#: In LLaVA's state dicts, used by no forward pass here.
UNUSED_KEYS = [
    r"^model\.image_newline$",
    r"^model\.compressor\.pos_embed$",
    r"rotary_emb\.inv_freq$",
    r"embeddings\.position_ids$",
]
#: Vocabulary of Llama 3, whose tokenizer has no unknown token, and its reserved token that stands for images here.
LLAMA_3_VOCABULARY, LLAMA_3_IMAGE = 128256, 128002


class ReleasedKey(WeightRenaming):
    """A renaming for loading only: a model that is saved again keeps foveate's names."""

    __slots__ = ()

    def reverse_transform(self) -> WeightRenaming:
        """A renaming that matches nothing."""
        return WeightRenaming(r"(?!)", "")


class ReleasedRows(WeightConverter):
    """One released weight whose rows several weights share evenly; for loading only, like `ReleasedKey`."""

    __slots__ = ()

    def reverse_transform(self) -> WeightRenaming:
        """A renaming that matches nothing."""
        return WeightRenaming(r"(?!)", "")


def register_released_keys(model_type: str, connector_type: str = "mlp") -> None:
    """Let `from_pretrained` of models with this `model_type` read released keys, of one connector.

    Authors give different layers the same names, such as `mm_projector.0`. Models call it when they are created, which
    is before their weights are read.
    """
    transforms: list[WeightConverter | WeightRenaming] = [
        ReleasedKey(source, target) for source, target in RELEASED_KEYS.items()
    ]
    connector = connector_named(connector_type)
    for name, target in connector.released_keys.items():
        source = name if name.startswith("^") else rf"^model\.{connector.released_prefix}\.{name}"
        if isinstance(target, str):
            transforms.append(ReleasedKey(source, f"model.multi_modal_projector.{target}"))
        else:
            targets = [f"model.multi_modal_projector.{one}" for one in target]
            transforms.append(ReleasedRows(source, targets, [Chunk(dim=0)]))
    register_checkpoint_conversion_mapping(model_type, transforms, overwrite=True)


def is_released_config(config: dict[str, Any]) -> bool:
    """Whether this content of a `config.json` describes a released LLaVA: fields of the language model at the top."""
    return (
        config.get("model_type") in RELEASED_MODEL_TYPES
        and "mm_projector_type" in config
        and "text_config" not in config
    )


def is_released(name_or_path: str | PathLike[str], **where: Any) -> bool:
    """Whether a folder or Hub id holds a released LLaVA; `where` is what `from_pretrained` takes to find files."""
    if file_of(name_or_path, CONFIG_NAME, **where) is None:
        return False
    return is_released_config(PreTrainedConfig.get_config_dict(name_or_path, **where)[0])


def convert_released_config(config: dict[str, Any]) -> dict[str, Any]:
    """Convert the content of a released `config.json` to fields of `FoveateLlavaConfig`.

    The authors mark images with -200, which is no token. Placeholders are the language model's unknown token (0)
    instead, or a reserved token of Llama 3, where 0 is "!": they never occur in text, and the vocabulary needs no
    further row.

    Raises:
        FoveateError: The projector, the vision tower or the choice of features is not supported.
    """
    text_class = CONFIG_MAPPING["llama"]
    known = {field.name for field in fields(text_class)} | {"rope_theta", "rope_scaling"}
    text = {name: value for name, value in config.items() if name in known} | {"model_type": "llama"}
    if config.get("mm_vision_select_feature", "patch") != "patch":
        raise FoveateError(
            f"mm_vision_select_feature {config['mm_vision_select_feature']!r} is not supported: the connectors read "
            "patches, which is 'patch'."
        )
    vision, tower = _vision(config)
    connector, options = _connector(config)
    layer = config.get("mm_vision_select_layer", -2)
    converted = {
        "model_type": "foveate_llava",
        "vision_config": vision,
        "text_config": text,
        "image_token_index": _placeholder(config),
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


def _vision(config: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
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
    return fields, tower if isinstance(tower, str) else None


def _tokens(vision: dict[str, Any]) -> int:
    """Tokens of an image in the vision tower."""
    side = vision["image_size"]
    if (encoder := all_encoders().get(vision["model_type"])) is None:
        return (side // vision["patch_size"]) ** 2
    config_class: Any = encoder.config_class
    return config_class(**vision).output_grid(side, side).size
