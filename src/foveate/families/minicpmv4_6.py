"""MiniCPM-V 4.6: a SigLIP tower on packed patches, with one merger among its blocks and others after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foveate.core.tokens import EncoderSpec, Grid
from foveate.families.family import Family, ImageLayout, grid_crop, pool, shrink_patches
from foveate.families.llava import encoder_layers


class MiniCPMV46(Family):
    """MiniCPM-V 4.6: thumbnail, slices and frames come as images of their own, and are budgeted so."""

    name: ClassVar[str] = "minicpm-v-4.6"
    title: ClassVar[str] = "MiniCPM-V 4.6"
    model_types: ClassVar[tuple[str, ...]] = ("minicpmv4_6",)
    reads_clips: ClassVar[bool] = True
    example: ClassVar[str] = "openbmb/MiniCPM-V-4.6"
    decoder: ClassVar[bool] = False
    whole_tile: ClassVar = "first"
    first_layer: ClassVar[bool] = False  # the first layer is a linear one

    def blocks(self, core: Any) -> list[nn.Module]:
        """The encoder's blocks."""
        return list(encoder_layers(core.vision_tower))

    def tower(self, core: Any) -> EncoderSpec:
        """Patches that make one token, as the configuration says."""
        return EncoderSpec(len(self.blocks(core)), False, _side(core, {}) ** 2, len(self.blocks(core)) - 1)

    def grids(self, core: Any, modality: str, call: Mapping[str, Any]) -> list[Grid]:
        """A raster an image, slice or frame."""
        side = _side(core, call)
        return [Grid(rows // side, columns // side) for rows, columns in _patches(modality, call)]

    def shrink(self, core: Any, modality: str, call: Mapping[str, Any], grids: Sequence[Grid]) -> dict[str, Any]:
        """Patches of smaller images."""
        side, patch = _side(core, call), core.config.vision_config.patch_size
        name, sizes = ("pixel_values", "target_sizes")
        if modality == "video":
            name, sizes = (f"{name}_videos", f"{sizes}_videos")
        old, new = _patches(modality, call), [Grid(side * grid.rows, side * grid.columns) for grid in grids]
        patches = _strip(call[name]).unflatten(-1, (-1, patch)).permute(2, 0, 1, 3)
        parts = patches.split([grid.size for grid in old])
        small = torch.cat([shrink_patches(*image) for image in zip(parts, old, new, strict=True)])
        strip = small.permute(1, 2, 0, 3).flatten(2)[None]
        return {**call, name: strip, sizes: torch.tensor(new, device=call[sizes].device)}

    def layouts(self, core: Any, modality: str, call: Mapping[str, Any], output: Any) -> list[ImageLayout]:
        """A raster an image, slice or frame."""
        patch, device = core.config.vision_config.patch_size, output.pooler_output[0].device
        return [
            ImageLayout(grid.size, grid_crop(*grid, device), size=(old.rows * patch, old.columns * patch))
            for grid, old in zip(self.grids(core, modality, call), _patches(modality, call), strict=True)
        ]

    def spread(self, core: Any, modality: str, call: Mapping[str, Any], output: Any, values: Tensor) -> list[Tensor]:
        """Means of the patches behind a token: more of them before the merger in the tower than after it."""
        old, new = _patches(modality, call), self.grids(core, modality, call)
        merged = isqrt(sum(grid.size for grid in old) // len(values))  # the side of what is one value by now
        grids = [Grid(grid.rows // merged, grid.columns // merged) for grid in old]
        parts = values.split([grid.size for grid in grids])
        return [
            pool(image_values, at, at.rows // to.rows) for image_values, at, to in zip(parts, grids, new, strict=True)
        ]


def _side(core: Any, call: Mapping[str, Any]) -> int:
    """Side of the square of patches that becomes one token."""
    side = core.config.merge_kernel_size[0] ** core.config.merger_times
    mode = call.get("downsample_mode") or core.config.downsample_mode
    return side if mode == "4x" else 2 * side


def _patches(modality: str, call: Mapping[str, Any]) -> list[Grid]:
    """Rows and columns of patches of everything that is encoded."""
    sizes = call["target_sizes" if modality == "image" else "target_sizes_videos"].tolist()
    frames = len(call["pixel_values_videos"]) if modality == "video" else 1
    return [Grid(rows, columns) for rows, columns in sizes] * frames


def _strip(pixels: Tensor) -> Tensor:
    """(C, p, L p) packed patches, also of clips (frames, C, p, l p)."""
    return pixels.permute(1, 2, 0, 3).flatten(2)
