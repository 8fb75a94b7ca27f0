"""Mistral 3: a Pixtral tower, whose patches a merger joins in squares; rows end with a text token in the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foveate.core.tokens import EncoderSpec, Grid
from foveate.families.family import Family, ImageLayout, grid_crop, pool, resize
from foveate.families.llava import encoder_layers, feature_layer


class Mistral3(Family):
    """Mistral Small 3.1 and later: images of any size, [IMG_BREAK] after every row, which is text and stays."""

    name: ClassVar[str] = "mistral3"
    title: ClassVar[str] = "Mistral 3"
    model_types: ClassVar[tuple[str, ...]] = ("mistral3",)
    example: ClassVar[str] = "mistralai/Mistral-Small-3.1-24B-Instruct-2503"
    needs_torchvision: ClassVar[bool] = True

    def blocks(self, core: Any) -> list[nn.Module]:
        """The encoder's blocks."""
        return list(encoder_layers(core.vision_tower))

    def output_layer(self, core: Any) -> int:
        """The block that `vision_feature_layer` reads."""
        return feature_layer(core, len(self.blocks(core)))

    def tower(self, core: Any) -> EncoderSpec:
        """The merger's side is a matter of configuration."""
        return EncoderSpec(len(self.blocks(core)), False, core.config.spatial_merge_size**2, self.output_layer(core))

    def grids(self, core: Any, modality: str, call: Mapping[str, Any]) -> list[Grid]:
        """One raster an image, in its proportions."""
        side = core.config.spatial_merge_size * core.config.vision_config.patch_size
        return [Grid(height // side, width // side) for height, width in _sizes(call)]

    def shrink(self, core: Any, modality: str, call: Mapping[str, Any], grids: Sequence[Grid]) -> dict[str, Any]:
        """Every image without its padding, made smaller, and padded again."""
        side = core.config.spatial_merge_size * core.config.vision_config.patch_size
        sizes = [(grid.rows * side, grid.columns * side) for grid in grids]
        pixels = call["pixel_values"]
        small = pixels.new_zeros(*pixels.shape[:2], *(max(lengths) for lengths in zip(*sizes, strict=True)))
        for place, ((height, width), size) in enumerate(zip(_sizes(call), sizes, strict=True)):
            small[place, :, : size[0], : size[1]] = resize(pixels[place, None, :, :height, :width], size)[0]
        return {**call, "pixel_values": small, "image_sizes": torch.tensor(sizes, device=pixels.device)}

    def layouts(self, core: Any, modality: str, call: Mapping[str, Any], output: Any) -> list[ImageLayout]:
        """One raster an image."""
        device = output.pooler_output[0].device
        grids = zip(self.grids(core, modality, call), _sizes(call), strict=True)
        return [ImageLayout(grid.size, grid_crop(*grid, device), size=size) for grid, size in grids]

    def spread(self, core: Any, modality: str, call: Mapping[str, Any], output: Any, values: Tensor) -> list[Tensor]:
        """Means of the patches that the merger joins."""
        patch = core.config.vision_config.patch_size
        grids = [Grid(height // patch, width // patch) for height, width in _sizes(call)]
        parts = values.split([grid.size for grid in grids])
        side = core.config.spatial_merge_size
        return [pool(image_values, grid, side) for image_values, grid in zip(parts, grids, strict=True)]


def _sizes(call: Mapping[str, Any]) -> list[tuple[int, int]]:
    return [(int(height), int(width)) for height, width in call["image_sizes"]]
