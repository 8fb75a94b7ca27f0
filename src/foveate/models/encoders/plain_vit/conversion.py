"""Weights of `ViTModel` of transformers under the names here."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.models.encoders.plain_vit.configuration import PlainViTConfig

#: Names that change by text alone.
_PARTS = {
    r"embeddings\.patch_embeddings\.projection\.(.+)": r"patches.\1",
    r"layers\.(\d+)\.attention\.([qkv]_proj)\.(.+)": r"blocks.\1.attention.\2.\3",
    r"layers\.(\d+)\.attention\.o_proj\.(.+)": r"blocks.\1.attention.out_proj.\2",
    r"layers\.(\d+)\.layernorm_before\.(.+)": r"blocks.\1.norm1.\2",
    r"layers\.(\d+)\.layernorm_after\.(.+)": r"blocks.\1.norm2.\2",
    r"layers\.(\d+)\.mlp\.(.+)": r"blocks.\1.mlp.\2",
    r"layernorm\.(.+)": r"norm.\1",
}


def convert_vit_state(state: Mapping[str, Tensor], config: PlainViTConfig) -> dict[str, Tensor]:
    """Convert weights of `ViTModel` of transformers to those of a [`PlainViTModel`].

    [CLS] and its position are one weight here. The pooler and the mask token are left out.

    Args:
        state: `ViTModel.from_pretrained(...).state_dict()`.
        config: With the sizes of the checkpoint; `with_patch_size` changes them after loading.

    Raises:
        FoveateError: A weight is of another network.
    """
    converted: dict[str, Tensor] = {}
    side = config.image_size // config.patch_size
    for name, value in state.items():
        if name.startswith("pooler.") or name in ("embeddings.cls_token", "embeddings.mask_token"):
            continue
        if name == "embeddings.position_embeddings":
            if value.shape[1] != side**2 + 1:
                raise FoveateError(
                    f"the weights have positions of {value.shape[1] - 1} patches, and the configuration {side**2}."
                )
            converted["cls_token.weight"] = state["embeddings.cls_token"] + value[:, :1]
            converted["positions.weight"] = value[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        else:
            converted[_name(name)] = value
    return converted


def _name(name: str) -> str:
    """The name here.

    Raises:
        FoveateError: It is no name of `ViTModel`.
    """
    for pattern, target in _PARTS.items():
        if re.fullmatch(pattern, name):
            return re.sub(pattern, target, name)
    raise FoveateError(f"{name!r} is no weight of ViTModel of transformers.")
