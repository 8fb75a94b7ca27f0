"""The authors' checkpoints of SiT and LV-ViT (`models/lvvit.py` of Sense-X/SiT) under the names here."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.models.encoders.sit.configuration import SiTConfig

#: Names that change by text alone; those of blocks, slimming and reverse modules below.
_PARTS = {
    r"^norm\.": "encoder.norm.",
    r"^head\.": "classifier.",
    r"^blocks\.(\d+)\.attn\.proj\.": r"encoder.blocks.\1.attention.out_proj.",
    r"^blocks\.": "encoder.blocks.",
}
_SLIMMING = {"scale": "scale", "weight.0": "norm", "weight.1": "mlp.fc1", "weight.3": "mlp.fc2"}
_REVERSE = {"mlp1.": "token_mlp.", "mlp2.": "channel_mlp.", "norm": "norm"}


def convert_released_state(state: Mapping[str, Tensor], config: SiTConfig) -> dict[str, Tensor]:
    """Convert weights of the authors to those of a [`SiTForImageClassification`].

    [CLS] and its position are one weight here. The auxiliary classifier of token labeling, which SiT does not use, is
    left out; so are the reverse modules where the configuration has none.

    Args:
        state: The authors' state dict.
        config: With the sizes of the checkpoint.

    Raises:
        FoveateError: A weight is of another network.
    """
    converted: dict[str, Tensor] = {}
    side = config.image_size // config.patch_size
    for name, value in state.items():
        if name.startswith(("aux_head.", "cls_token")):
            continue
        if name == "pos_embed":
            if value.shape[1] != side**2 + 1:
                raise FoveateError(
                    f"pos_embed has the positions of {value.shape[1] - 1} patches, and the configuration {side**2}."
                )
            converted["encoder.cls_token.weight"] = state["cls_token"] + value[:, :1]
            converted["encoder.positions.weight"] = value[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        elif match := re.fullmatch(r"blocks\.(\d+)\.attn\.qkv\.weight", name):
            for part, rows in zip("qkv", value.chunk(3), strict=True):
                converted[f"encoder.blocks.{match[1]}.attention.{part}_proj.weight"] = rows
        elif (target := _name(name, config)) is not None:
            converted[target] = value.flatten()[0] if target.endswith(".scale") else value
    return converted


def _name(name: str, config: SiTConfig) -> str | None:
    """The name here; None: the configuration has no such module.

    Raises:
        FoveateError: It is no name of the authors.
    """
    after = config.slimmed_after
    if match := re.fullmatch(r"patch_embed\.(conv|bn)(\d+)\.(.+)", name):
        return f"encoder.stem.{3 * (int(match[2]) - 1) + (match[1] == 'bn')}.{match[3]}"
    if match := re.fullmatch(r"tsm\.(\d+)\.(scale|weight\.\d)(.*)", name):
        return f"encoder.slimming.{after[int(match[1])]}.{_SLIMMING[match[2]]}{match[3]}" if after else None
    if match := re.fullmatch(r"rtsm\.(\d+)\.(mlp1\.|mlp2\.|norm)(.+)", name):
        wanted = config.reverse_modules and after
        return f"encoder.reverse.{int(match[1]) + 1}.{_REVERSE[match[2]]}{match[3]}" if wanted else None
    for pattern, target in _PARTS.items():
        if re.match(pattern, name):
            return re.sub(pattern, target, name)
    raise FoveateError(f"{name!r} is no weight of SiT or LV-ViT in the authors' layout.")
