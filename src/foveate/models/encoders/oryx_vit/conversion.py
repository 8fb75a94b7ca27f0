"""The authors' weights of OryxViT (`oryx_vit.pth` of THUdyh/Oryx-ViT) under the names here."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.models.encoders.oryx_vit.configuration import OryxViTConfig

#: Before the names in checkpoints of a whole Oryx.
_PREFIX = "model.vision_tower.vision_tower."
#: Layers of SigLIP after the last block, which the authors' code does not load.
_UNUSED = ("norm.", "attn_pool.", "fc_norm.", "head.")
_NAMES = {
    r"patch_embed\.proj\.(.+)": r"patches.\1",
    r"blocks\.(\d+)\.attn\.proj\.(.+)": r"blocks.\1.attention.out_proj.\2",
    r"(blocks\.\d+\.(?:norm[12]|mlp\.fc[12])\..+)": r"\1",
}
_QKV = re.compile(r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)")


def convert_released_state(state: Mapping[str, Tensor], config: OryxViTConfig) -> dict[str, Tensor]:
    """Convert weights of the authors to those of an [`OryxViTModel`].

    Args:
        state: The state dict of the tower, or of a whole Oryx, of which the other parts are left out.
        config: With the sizes of the checkpoint.

    Raises:
        FoveateError: A weight is of another network, or the positions have another number than the configuration.
    """
    if any(name.startswith(_PREFIX) for name in state):
        state = {name.removeprefix(_PREFIX): value for name, value in state.items() if name.startswith(_PREFIX)}
    converted: dict[str, Tensor] = {}
    side = config.position_side
    for name, value in state.items():
        if name.startswith(_UNUSED):
            continue
        if name == "pos_embed":
            if value.shape[1] != side**2:
                raise FoveateError(f"pos_embed has {value.shape[1]} positions, and the configuration {side**2}.")
            converted["positions.weight"] = value.transpose(1, 2).unflatten(2, (side, side))
        elif match := _QKV.fullmatch(name):
            block, kind = match.groups()
            for part, rows in zip("qkv", value.chunk(3), strict=True):
                converted[f"blocks.{block}.attention.{part}_proj.{kind}"] = rows
        else:
            converted[_name(name)] = value
    return converted


def _name(name: str) -> str:
    """The name here.

    Raises:
        FoveateError: It is no name of the authors.
    """
    for pattern, target in _NAMES.items():
        if re.fullmatch(pattern, name):
            return re.sub(pattern, target, name)
    raise FoveateError(f"{name!r} is no weight of OryxViT in the authors' layout.")
