"""InternVL: tiles of one size, each an image of its own, and squares of patches joined by pixel shuffle."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import Any, ClassVar

from torch import Tensor, nn

from foveate.core.tokens import EncoderSpec, Grid
from foveate.families.family import Family, ImageLayout, grid_crop, pool
from foveate.families.llava import feature_layer


class InternVL(Family):
    """InternVL 2 to 3.5: tiles and the thumbnail stand side by side in the prompt; each is budgeted as an image.

    The model does not know which tiles are of one image: the processor writes their tokens one after another.
    """

    name: ClassVar[str] = "internvl"
    title: ClassVar[str] = "InternVL 3"
    model_types: ClassVar[tuple[str, ...]] = ("internvl",)
    example: ClassVar[str] = "OpenGVLab/InternVL3-1B-hf"
    cls_tokens: ClassVar[tuple[bool, ...]] = (True,)
    whole_tile: ClassVar = "last"

    def blocks(self, core: Any) -> list[nn.Module]:
        """The encoder's blocks."""
        return list(core.vision_tower.encoder.layer)

    def has_cls(self, core: Any) -> bool:
        """InternViT has a [CLS] token."""
        return True

    def output_layer(self, core: Any) -> int:
        """The block that `vision_feature_layer` reads."""
        return feature_layer(core, len(self.blocks(core)))

    def tower(self, core: Any) -> EncoderSpec:
        """The side of the squares that are joined is a matter of configuration."""
        return EncoderSpec(len(self.blocks(core)), True, _side(core) ** 2, self.output_layer(core))

    def layouts(self, core: Any, modality: str, call: Mapping[str, Any], output: Any) -> list[ImageLayout]:
        """A square raster a tile."""
        tiles, count, _ = output.pooler_output.shape
        crops = grid_crop(isqrt(count), isqrt(count), output.pooler_output.device)
        height, width = call["pixel_values"].shape[-2:]
        return [ImageLayout(count, crops, size=(height, width))] * tiles

    def spread(self, core: Any, modality: str, call: Mapping[str, Any], output: Any, values: Tensor) -> list[Tensor]:
        """Means of the patches that pixel shuffle joins."""
        tiles = values.unflatten(0, (len(output.pooler_output), -1))
        side = isqrt(tiles.shape[1])
        return [pool(tile, Grid(side, side), _side(core)) for tile in tiles]


def _side(core: Any) -> int:
    """Side of the square of patches that becomes one token."""
    return round(1 / core.config.downsample_ratio)
