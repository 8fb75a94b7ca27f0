"""Kimi K2.5: MoonViT on packed row-major patches, and a 2 x 2 merger after it, which also averages over frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foveate.core.tokens import Grid
from foveate.families.family import Family, ImageLayout, grid_crop, pool, shrink_patches


class KimiK25(Family):
    """Kimi K2.5: a chunk of frames becomes one raster."""

    name: ClassVar[str] = "kimi-k2.5"
    title: ClassVar[str] = "Kimi K2.5"
    model_types: ClassVar[tuple[str, ...]] = ("kimi_k25",)
    reads_clips: ClassVar[bool] = True
    example: ClassVar[str] = "moonshotai/Kimi-K2.6"
    needs_torchvision: ClassVar[bool] = True
    decoder = False
    merge: ClassVar[int] = 4

    def blocks(self, core: Any) -> list[nn.Module]:
        """The encoder's blocks."""
        return list(core.vision_tower.layers)

    def grids(self, core: Any, modality: str, call: Mapping[str, Any]) -> list[Grid] | None:
        """A raster an image; chunks of frames are none."""
        sizes = call[f"{modality}_grid_thw"].tolist()
        if any(frames != 1 for frames, _, _ in sizes):
            return None
        side, _ = core.vision_tower.merge_kernel_size
        return [Grid(rows // side, columns // side) for _, rows, columns in sizes]

    def shrink(self, core: Any, modality: str, call: Mapping[str, Any], grids: Sequence[Grid]) -> dict[str, Any]:
        """Patches of smaller images."""
        side, _ = core.vision_tower.merge_kernel_size
        name, sizes = _pixels(modality), call[f"{modality}_grid_thw"]
        old = [Grid(rows, columns) for _, rows, columns in sizes.tolist()]
        new = [Grid(side * grid.rows, side * grid.columns) for grid in grids]
        parts = call[name].split([grid.size for grid in old])
        small = [shrink_patches(*image) for image in zip(parts, old, new, strict=True)]
        thw = torch.tensor([(1, *grid) for grid in new], device=sizes.device)
        return {**call, name: torch.cat(small), f"{modality}_grid_thw": thw}

    def layouts(self, core: Any, modality: str, call: Mapping[str, Any], output: Any) -> list[ImageLayout]:
        """A raster an image or chunk of frames."""
        side, _ = core.vision_tower.merge_kernel_size
        patch, device = core.config.vision_config.patch_size, output.pooler_output[0].device
        return [
            ImageLayout(
                (rows // side) * (columns // side),
                grid_crop(rows // side, columns // side, device),
                size=(rows * patch, columns * patch),
            )
            for _, rows, columns in call[f"{modality}_grid_thw"].tolist()
        ]

    def spread(self, core: Any, modality: str, call: Mapping[str, Any], output: Any, values: Tensor) -> list[Tensor]:
        """Means over frames, and over the patches that the merger joins."""
        side, _ = core.vision_tower.merge_kernel_size
        sizes = call[f"{modality}_grid_thw"].tolist()
        clips = values.split([frames * rows * columns for frames, rows, columns in sizes])
        return [
            pool(clip.unflatten(0, (frames, -1)).mean(dim=0), Grid(rows, columns), side)
            for clip, (frames, rows, columns) in zip(clips, sizes, strict=True)
        ]


def _pixels(modality: str) -> str:
    return "pixel_values" if modality == "image" else "pixel_values_videos"
