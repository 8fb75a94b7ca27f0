"""The authors' checkpoints of STViT (`models/stvit.py` of hhb072/STViT) under the names here."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.models.encoders.stvit.configuration import STViTConfig

_BLOCK = r"^layers\.(\d+)\.blocks\.(\d+)\."
_HERE = r"encoder.stages.\1.blocks.\2."
_NAMES = {
    r"^patch_embed\.proj\.": "encoder.stem.",
    rf"{_BLOCK}pos_embed\.": rf"{_HERE}position.",
    rf"{_BLOCK}norm1\.norm\.": rf"{_HERE}norm1.",
    rf"{_BLOCK}norm2\.": rf"{_HERE}norm2.",
    rf"{_BLOCK}attn\.stoken_refine\.proj\.": rf"{_HERE}attention.self_attention.out_proj.",
    rf"{_BLOCK}mlp2\.fc": rf"{_HERE}mlp.fc",
    rf"{_BLOCK}mlp2\.conv\.": rf"{_HERE}mlp.position.",
    rf"{_BLOCK}gamma_([12])$": rf"{_HERE}scale\3.weight",
    r"^proj\.": "projection.",
    r"^norm\.": "norm.",
    r"^head\.": "classifier.",
}
_QKV = re.compile(rf"{_BLOCK}attn\.stoken_refine\.qkv\.(weight|bias)")
#: Kernels of the authors' unfold and fold: constants.
_CONSTANT = re.compile(rf"{_BLOCK}attn\.(?:un)?fold\.weights")


def convert_released_state(state: Mapping[str, Tensor], config: STViTConfig) -> dict[str, Tensor]:
    """Convert weights of the authors to those of a [`STViTForImageClassification`].

    Args:
        state: The authors' state dict.
        config: With the sizes of the checkpoint.

    Raises:
        FoveateError: A weight is of another network.
    """
    converted: dict[str, Tensor] = {}
    for name, value in state.items():
        if _CONSTANT.fullmatch(name):
            continue
        if match := _QKV.fullmatch(name):
            stage, block, kind = match.groups()
            # Rows are grouped by head, and in a head by query, key and value.
            heads = value.flatten(1) if kind == "weight" else value
            heads = heads.unflatten(0, (_heads(config, int(stage)), 3, -1))
            for index, part in enumerate("qkv"):
                target = f"encoder.stages.{stage}.blocks.{block}.attention.self_attention.{part}_proj.{kind}"
                converted[target] = heads[:, index].flatten(0, 1)
        else:
            target = _name(name)
            if target.endswith("out_proj.weight"):
                value = value.flatten(1)
            elif target.endswith((".scale1.weight", ".scale2.weight")):
                value = value[0]
            converted[target] = value
    return converted


def _heads(config: STViTConfig, stage: int) -> int:
    """Heads of a stage.

    Raises:
        FoveateError: The configuration has no such stage.
    """
    if stage >= len(config.num_heads):
        raise FoveateError(f"the weights have a stage {stage + 1}, and the configuration has {len(config.num_heads)}.")
    return config.num_heads[stage]


def _name(name: str) -> str:
    """The name here.

    Raises:
        FoveateError: It is no name of the authors.
    """
    if match := re.fullmatch(r"layers\.(\d+)\.downsample\.proj\.(.+)", name):
        return f"encoder.stages.{int(match[1]) + 1}.merging.{match[2]}"
    for pattern, target in _NAMES.items():
        if re.match(pattern, name):
            return re.sub(pattern, target, name)
    raise FoveateError(f"{name!r} is no weight of STViT in the authors' layout.")
