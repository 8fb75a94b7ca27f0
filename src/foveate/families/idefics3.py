"""Idefics3 and SmolVLM: tiles and a thumbnail, each an image of its own between text, joined by pixel shuffle."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import Any, ClassVar

from torch import Tensor, nn

from foveate.core.tokens import EncoderSpec, Grid
from foveate.families.family import Family, ImageLayout, grid_crop, pool
from foveate.families.llava import encoder_layers


class Idefics3(Family):
    """Idefics3 and SmolVLM: text in the prompt says which tile comes; each tile is budgeted as an image."""

    name: ClassVar[str] = "idefics3"
    title: ClassVar[str] = "SmolVLM and Idefics3"
    model_types: ClassVar[tuple[str, ...]] = ("idefics3", "smolvlm")
    example: ClassVar[str] = "HuggingFaceTB/SmolVLM2-2.2B-Instruct"
    whole_tile: ClassVar = "last"
    language_model: ClassVar[str] = "text_model"

    def vision_tower(self, core: Any) -> nn.Module:
        """The encoder."""
        return core.vision_model

    def blocks(self, core: Any) -> list[nn.Module]:
        """The encoder's blocks."""
        return list(encoder_layers(core.vision_model))

    def tower(self, core: Any) -> EncoderSpec:
        """The side of the squares that are joined is a matter of configuration."""
        blocks = len(self.blocks(core))
        return EncoderSpec(blocks, False, core.config.scale_factor**2, blocks - 1)

    def layouts(self, core: Any, modality: str, call: Mapping[str, Any], output: Any) -> list[ImageLayout]:
        """A square raster a tile, padding of pixels included: the prompt has a token for every cell."""
        features = output.pooler_output
        count = core.image_seq_len
        crops = grid_crop(isqrt(count), isqrt(count), features[0].device)
        height, width = call["pixel_values"].shape[-2:]
        # What the model returns is joined by prompt; the batch is filled up with empty tiles, which are not encoded.
        tiles = sum(map(len, features)) // count
        return [ImageLayout(count, crops, size=(height, width))] * tiles

    def spread(self, core: Any, modality: str, call: Mapping[str, Any], output: Any, values: Tensor) -> list[Tensor]:
        """Means of the patches that pixel shuffle joins."""
        side = core.config.scale_factor
        count = isqrt(core.image_seq_len) * side
        return [pool(tile, Grid(count, count), side) for tile in values.split(count**2)]
