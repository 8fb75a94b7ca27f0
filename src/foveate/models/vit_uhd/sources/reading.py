"""Finding the vision tower in a model, or in the files of a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from foveate.core.errors import FoveateError
from foveate.core.text_files import read_json
from foveate.models.vit_uhd.configuration import ViTUHDConfig
from foveate.models.vit_uhd.sources.moonvit import read_moonvit
from foveate.models.vit_uhd.sources.native import read_vit_uhd
from foveate.models.vit_uhd.sources.qwen import read_qwen2_5_vl, read_qwen2_vl
from foveate.models.vit_uhd.sources.siglip2 import read_siglip2
from foveate.models.vit_uhd.sources.tower import SourceSpec, Tensors

READERS: dict[str, Callable[[Any, Tensors], SourceSpec]] = {
    "vit_uhd": read_vit_uhd,
    "kimi_k25_vision": read_moonvit,
    "siglip2_vision_model": read_siglip2,
    "qwen2_vl_vision": read_qwen2_vl,
    "qwen2_5_vl_vision": read_qwen2_5_vl,
}
"""The reader of each supported tower, by the `model_type` of its configuration."""

SUPPORTED = "MoonViT (kimi_k25), SigLIP2 NaFlex, the towers of Qwen2-VL and Qwen2.5-VL, and ViT-UHD itself"

# A file that may be missing: ask for it without an exception.
_OPTIONAL: dict[str, Any] = {
    "_raise_exceptions_for_missing_entries": False,
    "_raise_exceptions_for_connection_errors": False,
}

# Where models keep their vision tower, innermost name last.
_TOWER_PREFIX = re.compile(r"^(?:model\.)?(?:visual|vision_tower\.vision_tower|vision_tower|vision_model)\.")


def read_source(source: nn.Module | str | Path) -> SourceSpec:
    """The vision tower of a model, or of the checkpoint in a folder or on the Hub.

    Of a checkpoint only the tower's tensors are read, not the language model's.

    Args:
        source: A tower, a model that contains one, a folder, or a Hub id.

    Returns:
        The tower in the terms of ViT-UHD.

    Raises:
        FoveateError: If there is no supported tower, or it is incomplete, quantised or has adapters.
    """
    if isinstance(source, nn.Module):
        config, tensors = _from_module(source)
        return READERS[config.model_type](config, Tensors(tensors))
    config, tensors = _from_files(str(source))
    tower = READERS[config.model_type](config, Tensors(tensors))
    return replace(tower, **_normalisation(str(source)))


def _from_module(model: nn.Module) -> tuple[PreTrainedConfig, dict[str, Tensor]]:
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and module.config.model_type in READERS:
            return module.config, module.state_dict()
    raise FoveateError(f"{type(model).__name__} holds no vision tower that can be converted; possible are {SUPPORTED}.")


def _from_files(name: str) -> tuple[PreTrainedConfig, dict[str, Tensor]]:
    try:
        fields, _ = ViTUHDConfig.get_config_dict(name)
    except (OSError, ValueError, RecursionError) as error:
        raise FoveateError(
            f"{name!r} is neither a folder with a config.json nor a model that the Hub or its cache can give."
        ) from error
    config = _tower_config(name, fields)
    tensors: dict[str, Tensor] = {}
    for file in _weight_files(name):
        try:
            with safe_open(file, framework="pt") as weights:
                names = list(weights.keys())
                tensors |= {key: weights.get_tensor(key) for key in names if _TOWER_PREFIX.match(key)}
                if config.model_type == fields.get("model_type"):  # a checkpoint of the tower alone
                    tensors |= {key: weights.get_tensor(key) for key in names if not _TOWER_PREFIX.match(key)}
        except SafetensorError as error:
            raise FoveateError(f"{file} is no safetensors file: {error}.") from error
    return config, {_TOWER_PREFIX.sub("", key): tensor for key, tensor in tensors.items()}


def _tower_config(name: str, fields: dict[str, Any]) -> PreTrainedConfig:
    """The tower's configuration from the fields of a whole model's, or of its own."""
    kind = fields.get("model_type", "")
    config: Any = None
    if kind in CONFIG_MAPPING:
        config = CONFIG_MAPPING[kind].from_dict(fields)
        config = config if kind in READERS else getattr(config, "vision_config", None)
    elif isinstance(fields.get("vision_config"), dict):  # remote code, such as Kimi-VL with its "moonvit"
        nested = fields["vision_config"]
        if nested.get("model_type") in CONFIG_MAPPING:
            config = CONFIG_MAPPING[nested["model_type"]].from_dict(nested)
    if config is None or config.model_type not in READERS:
        found = f"vision tower {config.model_type!r}" if config is not None else f"model type {kind!r}"
        raise FoveateError(f"{name!r} has {found}, which cannot be converted; possible are {SUPPORTED}.")
    return config


def _normalisation(name: str) -> dict[str, tuple[float, ...]]:
    """Mean and standard deviation in the preprocessor configuration next to the weights, if it has them."""
    file = cached_file(name, "preprocessor_config.json", **_OPTIONAL)
    if file is None:
        return {}
    try:
        values = read_json(file)
        return {key: tuple(map(float, values[key])) for key in ("image_mean", "image_std") if values.get(key)}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise FoveateError(f"{file} is not a preprocessor configuration: {error}.") from error


def _weight_files(name: str) -> list[str]:
    """The safetensors files of a folder or Hub id."""
    file = cached_file(name, "model.safetensors", **_OPTIONAL)
    if file is not None:
        return [file]
    index = cached_file(name, "model.safetensors.index.json", **_OPTIONAL)
    if index is None:
        raise FoveateError(f"{name!r} has no weights in the safetensors format (model.safetensors or its index).")
    return get_checkpoint_shard_files(name, index)[0]
