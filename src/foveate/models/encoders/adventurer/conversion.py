"""The authors' checkpoints of Adventurer (`models_mamba.py` of wangf3014/Patch_Scaling) under the names here."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.models.encoders.adventurer.configuration import AdventurerConfig

#: Names that change by text alone.
_PARTS = {
    r"patch_embed\.proj\.(weight|bias)": r"encoder.patches.\1",
    r"head\.(weight|bias)": r"classifier.\1",
    r"norm_f\.weight": "encoder.norm.weight",
    r"layers\.(\d+)\.norm\.weight": r"encoder.blocks.\1.norm1.weight",
    r"layers\.(\d+)\.norm_mlp\.weight": r"encoder.blocks.\1.norm2.weight",
    r"layers\.(\d+)\.mlp\.w1\.(weight|bias)": r"encoder.blocks.\1.mlp.gate_proj.\2",
    r"layers\.(\d+)\.mlp\.w2\.(weight|bias)": r"encoder.blocks.\1.mlp.up_proj.\2",
    r"layers\.(\d+)\.mlp\.w3\.(weight|bias)": r"encoder.blocks.\1.mlp.down_proj.\2",
    r"layers\.(\d+)\.mixer\.(.+)": r"encoder.blocks.\1.mixer.\2",
}


def convert_released_state(state: Mapping[str, Tensor], config: AdventurerConfig) -> dict[str, Tensor]:
    """Convert weights of the authors to those of an [`AdventurerForImageClassification`] with `flip="released"`.

    [CLS] and its position, the last one, are one weight here.

    Args:
        state: The authors' state dict, the `model` of a checkpoint.
        config: With the sizes of the checkpoint; `with_patch_size` changes those of an encoder after loading.

    Raises:
        FoveateError: A weight is of another network, or the blocks of the configuration are not flipped as theirs.
    """
    if config.flip != "released":
        raise FoveateError("the authors' weights of Adventurer need flip='released' in the configuration.")
    converted: dict[str, Tensor] = {}
    side = config.image_size // config.patch_size
    for name, value in state.items():
        if name == "cls_token":
            continue
        if name == "pos_embed":
            if value.shape[1] != side**2 + 1:
                raise FoveateError(
                    f"pos_embed has the positions of {value.shape[1] - 1} patches, and the configuration {side**2}."
                )
            converted["encoder.cls_token.weight"] = state["cls_token"] + value[:, -1:]
            converted["encoder.positions.weight"] = value[:, :-1].transpose(1, 2).unflatten(2, (side, side))
        else:
            converted[_name(name)] = value
    return converted


def _name(name: str) -> str:
    """The name here.

    Raises:
        FoveateError: It is no name of the authors.
    """
    for pattern, target in _PARTS.items():
        if re.fullmatch(pattern, name):
            return re.sub(pattern, target, name)
    raise FoveateError(f"{name!r} is no weight of Adventurer in the authors' layout.")
