"""Weights of FALCON's authors (JiuTian-VL/JiuTian-FALCON), and of CLIP and SigLIP, under the names here."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.models.encoders.falcon.configuration import FalconVisionConfig

#: Names of a whole model of the authors that belong to the encoder.
_ENCODER = "model.vision_model."
_PREFIX = re.compile(r"^(model\.vision_model\.)?(vision_tower\.)?(vision_model\.)?")
_NAMES = {
    "vision_queries": "registers.weight",
    "crop_embedding_h.weight": "crop_positions.rows",
    "crop_embedding_w.weight": "crop_positions.columns",
    "embeddings.patch_embedding.weight": "patches.weight",
    "embeddings.patch_embedding.bias": "patches.bias",
    "pre_layrnorm.weight": "pre_norm.weight",
    "pre_layrnorm.bias": "pre_norm.bias",
}
_PARTS = {
    "self_attn": "attention",
    "interact_attn": "re_attention",
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "mlp": "mlp",
}
_BLOCK = re.compile(r"encoder\.layers\.(\d+)\.(\w+)\.(.+)")


def convert_released_state(state: Mapping[str, Tensor], config: FalconVisionConfig) -> dict[str, Tensor]:
    """Convert weights of the authors to those of a [`FalconVisionModel`].

    Takes a whole model of theirs, its encoder, or a CLIP or SigLIP of `transformers`, which has no registers and no
    positions of crops. Where there are no weights of ReAtten, they are those of each block's attention, as in the
    authors' code. [CLS] and its position are one weight here. Parts that no register depends on are left out: CLIP's
    last layer norm and SigLIP's pooling head.

    Args:
        state: A state dict.
        config: With the sizes of the checkpoint.

    Raises:
        FoveateError: A weight is of another network, or there are other numbers of patches or crops.
    """
    if any(name.startswith(_ENCODER) for name in state):
        state = {name: value for name, value in state.items() if name.startswith(_ENCODER)}
    named = {_PREFIX.sub("", name, count=1): value for name, value in state.items()}
    converted: dict[str, Tensor] = {}
    for name, value in named.items():
        if name == "embeddings.position_embedding.weight":
            converted |= _positions(value, named.get("embeddings.class_embedding"), config)
        elif match := _BLOCK.fullmatch(name):
            part = _PARTS.get(match[2])
            if part is None:
                raise FoveateError(_unknown(name))
            converted[f"blocks.{match[1]}.{part}.{match[3]}"] = value
        elif name.startswith("post_layernorm."):
            if config.geometry == "siglip":
                converted[name.replace("post_layernorm", "norm")] = value
        elif name in _NAMES:
            converted[_NAMES[name]] = value
        elif not name.startswith(("head.", "embeddings.class_embedding", "embeddings.position_ids")):
            raise FoveateError(_unknown(name))
    for name in ("rows", "columns"):
        table = converted.get(f"crop_positions.{name}")
        if table is not None and len(table) != config.max_crops + 1:
            raise FoveateError(
                f"the weights have {len(table)} positions of crops, and max_crops {config.max_crops} needs "
                f"{config.max_crops + 1}."
            )
    if not config.re_attention:
        return {name: value for name, value in converted.items() if ".re_attention." not in name}
    copies = {name.replace(".attention.", ".re_attention."): value for name, value in converted.items()
              if ".attention." in name}  # fmt: skip
    return {**{name: value.clone() for name, value in copies.items()}, **converted}


def _positions(table: Tensor, cls_token: Tensor | None, config: FalconVisionConfig) -> dict[str, Tensor]:
    """The raster of positions, and [CLS] with its own.

    Raises:
        FoveateError: There are other numbers of patches, or it is the other geometry.
    """
    side, first = config.image_size // config.patch_size, int(config.geometry == "clip")
    if (cls_token is not None) != bool(first) or len(table) != side**2 + first:
        raise FoveateError(
            f"the weights have {len(table)} positions, {'with' if cls_token is not None else 'without'} [CLS], and "
            f"{config.geometry} with {side} x {side} patches has {side**2 + first}."
        )
    raster = table[first:].T.unflatten(1, (side, side))[None]
    converted = {"positions.weight": raster}
    if cls_token is not None:
        converted["cls_token.weight"] = (cls_token + table[0])[None, None]
    return converted


def _unknown(name: str) -> str:
    return f"{name!r} is no weight of FALCON's encoder, CLIP or SigLIP."
