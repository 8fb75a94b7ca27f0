"""ViT-UHD itself, and MoonViT in its original layout, which has the same names."""

from __future__ import annotations

import re

from torch import Tensor
from transformers import PreTrainedConfig

from foveate.models.vit_uhd.configuration import ViTUHDConfig
from foveate.models.vit_uhd.sources.tower import SourceSpec, Tensors


def read_native(source: Tensors, dropped: str) -> dict[str, Tensor]:
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


def read_vit_uhd(config: ViTUHDConfig, source: Tensors) -> SourceSpec:
    """ViT-UHD itself and MoonViT in its original layout, whose names are ours."""
    weights = read_native(source, dropped=r".*merger\.zero_init_fc\.")
    fields = {name: value for name, value in config.to_dict().items() if name in ViTUHDConfig.__dataclass_fields__}
    for inherited in PreTrainedConfig.__dataclass_fields__:
        fields.pop(inherited, None)
    return SourceSpec("ViT-UHD", fields, weights, config.rope_layout)
