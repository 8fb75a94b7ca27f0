"""The authors' weights of OryxViT (`oryx_vit.pth` of THUdyh/Oryx-ViT) under the names here."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.models.encoders.layers import square_table
from foveate.models.encoders.oryx_vit.configuration import OryxViTConfig
from foveate.models.encoders.oryx_vit.modeling import OryxViTModel

#: Before the names in checkpoints of a whole Oryx.
_PREFIX = "model.vision_tower.vision_tower."
#: Layers of SigLIP after the last block, which the authors' code does not load.
_UNUSED = ("norm.", "attn_pool.", "fc_norm.", "head.")
_LAYERS = re.compile(r"(patch_embed\.proj|blocks\.\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12]))\.(weight|bias)")


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
    for name, value in state.items():
        if name.startswith(_UNUSED):
            continue
        if name == OryxViTModel.released_positions:
            if value.shape[1] != (count := config.position_side**2):
                raise FoveateError(f"pos_embed has {value.shape[1]} positions, and the configuration {count}.")
            converted["positions.weight"] = square_table(value)
        elif not _LAYERS.fullmatch(name):
            raise FoveateError(f"{name!r} is no weight of OryxViT in the authors' layout.")
        else:
            source, target = next(
                (pair for pair in OryxViTModel.released_keys.items() if re.search(pair[0], name)), ("$", "")
            )
            targets = (target,) if isinstance(target, str) else target
            for part, rows in zip(targets, value.chunk(len(targets)), strict=True):
                converted[re.sub(source, part, name, count=1)] = rows
    return converted
