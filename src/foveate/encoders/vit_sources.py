"""Pretrained vision transformers of `transformers`, described in the terms of ViT-UHD.

One function a family turns a tower's configuration and tensors into the fields of a `ViTUHDConfig` and tensors
under ViT-UHD's names. What differs is small: names, the order of rotary channels, the shape of the patch kernel,
and which norm and MLP the blocks have. `read_source` finds the tower in a model or in a checkpoint's files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from foveate.encoders.configuration import ViTUHDConfig
from foveate.errors import FoveateError


@dataclass(frozen=True)
class Tower:
    """A vision tower in the terms of ViT-UHD.

    Args:
        family: What it was, in words.
        fields: Fields of a `ViTUHDConfig` that computes what the tower does.
        weights: Its tensors under ViT-UHD's names, in the source's dtype.
        rotary_channels: How `wqkv` lays out rotary positions, see `rotary_channels`; "none" without them.
        merger_norm: Parameters (weight, bias) of the norm in front of the source's own patch merger, if it has one.
        image_mean: Mean of each channel that the tower's images are normalised with.
        image_std: Standard deviation of each channel, likewise.
    """

    family: str
    fields: dict[str, Any]
    weights: dict[str, Tensor]
    rotary_channels: str
    merger_norm: dict[str, Tensor] | None = None
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)


class _Source:
    """Tensors of a source, each to be taken once, so that nothing is lost without notice."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(tensors)

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def require(self, name: str) -> None:
        if name not in self.tensors:
            raise FoveateError(f"the source has no tensor {name!r}; it is not a complete vision tower.")

    def take(self, name: str) -> Tensor:
        self.require(name)
        tensor = self.tensors.pop(name)
        if tensor.is_meta or not tensor.is_floating_point():
            raise FoveateError(
                f"tensor {name!r} of the source is {'not in memory' if tensor.is_meta else tensor.dtype}; "
                "load the source unquantised and without offloading."
            )
        return tensor.detach()

    def take_layer(self, names: str | tuple[str, ...]) -> dict[str, Tensor]:
        """The parameters of one layer, or of several concatenated over their outputs: (weight[, bias])."""
        names = (names,) if isinstance(names, str) else names
        layer = {"weight": torch.cat([self.take(f"{name}.weight") for name in names])}
        if f"{names[0]}.bias" in self:
            layer["bias"] = torch.cat([self.take(f"{name}.bias") for name in names])
        return layer

    def finish(self, dropped: str = r"(?!)") -> None:
        """Check that what is left is known to be of no use: names that match `dropped` from their start."""
        unknown = sorted(name for name in self.tensors if not re.match(dropped, name))
        if unknown:
            raise FoveateError(
                f"the source has {len(unknown)} tensors that a plain vision tower has not, such as {unknown[0]!r}; "
                "if they are adapters, merge them into the model first."
            )


def rotary_channels(layout: str, head_dim: int) -> Tensor:
    """Which channel of a head holds what, for every way to lay out two-dimensional rotary positions.

    Args:
        layout: One of `ROPE_LAYOUTS` but "none", or "half-interleaved" (rotate-half with x and y frequencies
            alternating: MoonViT in `transformers`).
        head_dim: Channels of a head, a multiple of 4.

    Returns:
        (head_dim,) long: for every channel the index of its (axis, frequency, member of the pair), x before y.
    """
    channels = torch.arange(head_dim).view(2, head_dim // 4, 2)  # axis, frequency, member
    orders = {
        "interleaved": channels.transpose(0, 1),
        "hierarchical": channels,
        "half": channels.flip(0).permute(2, 0, 1),
        "half-interleaved": channels.permute(2, 1, 0),
    }
    return orders[layout].flatten()


def reorder_rotary(tensor: Tensor, num_heads: int, source: str, target: str) -> Tensor:
    """Queries and keys of a `wqkv` for another layout of the rotary channels.

    Attention sees only products of queries and keys, so the same permutation of both changes nothing but where
    each frequency is found. Values keep their places.

    Args:
        tensor: (3D, ...) weight or bias.
        num_heads: Number of heads.
        source: Layout of `tensor`, see `rotary_channels`.
        target: Layout of the result.

    Returns:
        (3D, ...).
    """
    query_key, value = tensor.split([2 * len(tensor) // 3, len(tensor) // 3])
    heads = query_key.unflatten(0, (2 * num_heads, -1))
    head_dim = heads.shape[1]
    order = rotary_channels(source, head_dim).argsort()[rotary_channels(target, head_dim)]
    return torch.cat((heads[:, order.to(tensor.device)].flatten(0, 1), value))


def _read_blocks(
    source: _Source, prefix: str, count: int, names: Mapping[str, str | tuple[str, ...]]
) -> dict[str, Tensor]:
    """Tensors of all blocks; `names` maps our layer of a block to theirs (several are concatenated)."""
    weights = {}
    for index in range(count):
        for ours, theirs in names.items():
            theirs = (theirs,) if isinstance(theirs, str) else theirs
            layer = source.take_layer(tuple(f"{prefix}.{index}.{name}" for name in theirs))
            weights |= {f"encoder.blocks.{index}.{ours}.{part}": tensor for part, tensor in layer.items()}
    return weights


def _square(patch_size: Any) -> int:
    """The side of a patch that a configuration may give as a number or as a pair."""
    if isinstance(patch_size, int):
        return patch_size
    if len(set(patch_size)) != 1:
        raise FoveateError(f"the source's patches of {patch_size} pixels are not square.")
    return int(patch_size[0])


def _theta(config: PreTrainedConfig) -> float:
    return float((config.rope_parameters or {}).get("rope_theta", 10000.0))


def _read_native(source: _Source, dropped: str) -> dict[str, Tensor]:
    """All tensors under the names of MoonViT's original layout, which are ours, but those that match `dropped`.

    When `transformers` writes that layout it puts the patch convolution one level too deep.
    """
    deeper = "encoder.patch_embed."
    source.tensors = {
        name.removeprefix("encoder.") if name.startswith(deeper) else name: tensor
        for name, tensor in source.tensors.items()
    }
    source.require("patch_embed.proj.weight")
    weights = {name: source.take(name) for name in list(source.tensors) if not re.match(dropped, name)}
    source.finish(dropped)
    return weights


def read_vit_uhd(config: ViTUHDConfig, source: _Source) -> Tower:
    """ViT-UHD itself and MoonViT in its original layout, whose names are ours."""
    weights = _read_native(source, dropped=r".*merger\.zero_init_fc\.")
    fields = {name: value for name, value in config.to_dict().items() if name in ViTUHDConfig.__dataclass_fields__}
    for inherited in PreTrainedConfig.__dataclass_fields__:
        fields.pop(inherited, None)
    return Tower("ViT-UHD", fields, weights, config.rope_layout)


_KIMI_TIME = r"patch_embed\.pos_emb\.time"


def read_moonvit(config: PreTrainedConfig, source: _Source) -> Tower:
    """MoonViT as the vision tower of Kimi K2.5, for single images.

    Its time embedding is zero for an image. `transformers` keeps the rotary pairs as two halves; checkpoints in
    the original layout have them next to each other, and our names.
    """
    fields = {
        "patch_size": _square(config.patch_size),
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "hidden_act": config.hidden_act,
        "init_pos_emb_height": config.pos_emb_height,
        "init_pos_emb_width": config.pos_emb_width,
        "position_embedding": "bicubic",
        "rope_theta": _theta(config),
        "layer_norm_eps": 1e-5,
    }
    if "encoder.blocks.0.wqkv.weight" in source:
        rotary = "interleaved"
        weights = _read_native(source, dropped=_KIMI_TIME)
    else:
        rotary = "half-interleaved"
        weights = _read_blocks(
            source,
            "layers",
            config.num_hidden_layers,
            {
                "norm0": "norm1",
                "norm1": "norm2",
                "wqkv": ("attn.q_proj", "attn.k_proj", "attn.v_proj"),
                "wo": "attn.proj",
                "mlp.fc0": "mlp.fc1",
                "mlp.fc1": "mlp.fc2",
            },
        )
        weights["patch_embed.pos_emb.weight"] = source.take("patch_embed.pos_emb.position_embeddings")
        for ours, theirs in (("patch_embed.proj", "patch_embed.proj"), ("encoder.final_layernorm", "final_layernorm")):
            weights |= {f"{ours}.{part}": tensor for part, tensor in source.take_layer(theirs).items()}
    source.finish(_KIMI_TIME)
    return Tower("MoonViT", fields, weights, rotary)


def read_siglip2(config: PreTrainedConfig, source: _Source) -> Tower:
    """SigLIP2 NaFlex: a linear layer over pixels (row, column, channel), absolute positions only.

    Its attention pooling head, which makes one vector of an image, is left out.
    """
    patch_size, side = _square(config.patch_size), int(config.num_patches**0.5)
    fields = {
        "patch_size": patch_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "hidden_act": config.hidden_act,
        "init_pos_emb_height": side,
        "init_pos_emb_width": side,
        "position_embedding": "bilinear-antialias",
        "rope_layout": "none",
        "layer_norm_eps": config.layer_norm_eps,
        "attention_dropout": config.attention_dropout,
    }
    weights = _read_blocks(
        source,
        "encoder.layers",
        config.num_hidden_layers,
        {
            "norm0": "layer_norm1",
            "norm1": "layer_norm2",
            "wqkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "wo": "self_attn.out_proj",
            "mlp.fc0": "mlp.fc1",
            "mlp.fc1": "mlp.fc2",
        },
    )
    kernel = source.take("embeddings.patch_embedding.weight").unflatten(1, (patch_size, patch_size, -1))
    weights["patch_embed.proj.weight"] = kernel.permute(0, 3, 1, 2).contiguous()
    weights["patch_embed.proj.bias"] = source.take("embeddings.patch_embedding.bias")
    positions = source.take("embeddings.position_embedding.weight")
    weights["patch_embed.pos_emb.weight"] = positions.unflatten(0, (side, side))
    final = source.take_layer("post_layernorm")
    weights |= {f"encoder.final_layernorm.{part}": tensor for part, tensor in final.items()}
    source.finish(r"head\.")
    return Tower("SigLIP2 NaFlex", fields, weights, "none")


# Normalisation of Qwen2-VL and Qwen2.5-VL, which is CLIP's.
_CLIP = {
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}


def _read_qwen(source: _Source, config: PreTrainedConfig, width: int, mlp: dict[str, str]) -> Any:
    """What the two Qwen towers share: (fields, weights, norm of the patch merger).

    A still image is fed to them as two equal frames, so the sum of the two slices of their patch kernel is its
    exact counterpart. They end without a norm: theirs is the first layer of the patch merger, which is left out.
    """
    fields = {
        "patch_size": _square(config.patch_size),
        "hidden_size": width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "hidden_act": config.hidden_act,
        "position_embedding": "none",
        "rope_theta": _theta(config),
        "layer_norm_eps": 1e-6,
        "final_norm": False,
        "patch_bias": False,
    }
    names = {"norm0": "norm1", "norm1": "norm2", "wqkv": "attn.qkv", "wo": "attn.proj", **mlp}
    weights = _read_blocks(source, "blocks", config.depth, names)
    kernel = source.take("patch_embed.proj.weight")
    weights["patch_embed.proj.weight"] = kernel.sum(2)
    merger_norm = source.take_layer("merger.ln_q")
    source.finish(r"merger\.mlp\.")
    return fields, weights, merger_norm


def read_qwen2_vl(config: PreTrainedConfig, source: _Source) -> Tower:
    """Qwen2-VL's tower."""
    fields, weights, norm = _read_qwen(source, config, config.embed_dim, {"mlp.fc0": "mlp.fc1", "mlp.fc1": "mlp.fc2"})
    fields["intermediate_size"] = int(config.embed_dim * config.mlp_ratio)
    return Tower("Qwen2-VL", fields, weights, "half", norm, **_CLIP)


def read_qwen2_5_vl(config: PreTrainedConfig, source: _Source) -> Tower:
    """Qwen2.5-VL's tower: RMS norms, gated MLPs, window attention in most blocks.

    Windows keep their side in tokens when the patch changes: that is the neighbourhood, in positions and in
    keys, that the weights were trained with.
    """
    fields, weights, norm = _read_qwen(
        source,
        config,
        config.hidden_size,
        {"mlp.gate": "mlp.gate_proj", "mlp.fc0": "mlp.up_proj", "mlp.fc1": "mlp.down_proj"},
    )
    merge = config.spatial_merge_size
    fields |= {
        "intermediate_size": config.intermediate_size,
        "norm_type": "rms_norm",
        "mlp_type": "gated",
        "window_size": config.window_size // merge // fields["patch_size"] * merge,
        "full_attention_layers": list(config.fullatt_block_indexes),
    }
    return Tower("Qwen2.5-VL", fields, weights, "half", norm, **_CLIP)


READERS: dict[str, Callable[[Any, _Source], Tower]] = {
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


def read_source(source: nn.Module | str | Path) -> Tower:
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
        return READERS[config.model_type](config, _Source(tensors))
    config, tensors = _from_files(str(source))
    tower = READERS[config.model_type](config, _Source(tensors))
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
        values = json.loads(Path(file).read_text(encoding="utf-8"))
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


__all__ = ["READERS", "SUPPORTED", "Tower", "read_source", "reorder_rotary", "rotary_channels"]
