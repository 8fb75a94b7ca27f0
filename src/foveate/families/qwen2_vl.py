"""Qwen2-VL, Qwen2.5-VL and models with their structure: native resolution, 2 x 2 merger, M-RoPE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers.vision_utils import get_vision_window_index

from foveate.core.tokens import Grid
from foveate.families.family import Family, ImageLayout, frame_crops, resize


class Qwen2VL(Family):
    """Qwen2-VL: tokens arrive in groups of four, which the merger joins; a clip is `t` rasters."""

    name: ClassVar[str] = "qwen2-vl"
    title: ClassVar[str] = "Qwen2-VL"
    model_types: ClassVar[tuple[str, ...]] = ("qwen2_vl",)
    reads_clips: ClassVar[bool] = True
    example: ClassVar[str] = "Qwen/Qwen2-VL-7B-Instruct"
    merge: ClassVar[int] = 4
    raster_features: ClassVar[Literal["before-projector", "after-merger"] | None] = "after-merger"

    def blocks(self, core: Any) -> list[nn.Module]:
        """The encoder's blocks."""
        return list(core.visual.blocks)

    def vision_tower(self, core: Any) -> nn.Module:
        """The encoder."""
        return core.visual

    def grids(self, core: Any, modality: str, call: Mapping[str, Any]) -> list[Grid] | None:
        """A raster an image or frame of a clip."""
        side = core.visual.spatial_merge_size
        return [Grid(rows // side, columns // side) for _, rows, columns in call[f"{modality}_grid_thw"].tolist()]

    def frames(self, core: Any, modality: str, call: Mapping[str, Any]) -> list[int] | None:
        """Pairs of frames of a clip, or as many as a patch is deep."""
        return [frames for frames, _, _ in call[f"{modality}_grid_thw"].tolist()]

    def shrink(self, core: Any, modality: str, call: Mapping[str, Any], grids: Sequence[Grid]) -> dict[str, Any]:
        """Patches back to pixels, resized, and cut into patches again, in the order of merge groups."""
        side, config = core.visual.spatial_merge_size, core.config.vision_config
        patch, depth = config.patch_size, config.temporal_patch_size
        name = "pixel_values" if modality == "image" else "pixel_values_videos"
        old = call[f"{modality}_grid_thw"].tolist()
        smaller, sizes = [], []
        for patches, (frames, rows, columns), grid in zip(
            call[name].split([t * h * w for t, h, w in old]), old, grids, strict=True
        ):
            # (frame, row, column, row and column in a merge group, channel, time, height, width) to
            # (frame, channel x time, H, W)
            cut = patches.view(frames, rows // side, columns // side, side, side, -1, depth, patch, patch)
            image = cut.permute(0, 5, 6, 1, 3, 7, 2, 4, 8).reshape(frames, -1, rows * patch, columns * patch)
            small = resize(image, (grid.rows * side * patch, grid.columns * side * patch))
            small = small.view(frames, -1, depth, grid.rows, side, patch, grid.columns, side, patch)
            smaller.append(small.permute(0, 3, 6, 4, 7, 1, 2, 5, 8).reshape(-1, patches.shape[1]))
            sizes.append((frames, grid.rows * side, grid.columns * side))
        device = call[f"{modality}_grid_thw"].device
        return {**call, name: torch.cat(smaller), f"{modality}_grid_thw": torch.tensor(sizes, device=device)}

    def text_positions(self, positions: Tensor | None) -> Tensor | None:
        """Plain positions are spread over the three axes, and tell no samples apart."""
        return positions[0] if positions is not None and positions.ndim == 3 and len(positions) == 4 else None

    def layouts(self, core: Any, modality: str, call: Mapping[str, Any], output: Any) -> list[ImageLayout]:
        """A raster an image, `t` of them a clip."""
        side = core.visual.spatial_merge_size
        patch = core.config.vision_config.patch_size
        device = output.pooler_output[0].device
        layouts = []
        for frames, rows, columns in call[f"{modality}_grid_thw"].tolist():
            crops = frame_crops(frames, rows // side, columns // side, device)
            size = (rows * patch, columns * patch)
            layouts.append(ImageLayout(frames * (rows // side) * (columns // side), crops, size=size))
        return layouts


class Qwen25VL(Qwen2VL):
    """Qwen2.5-VL: as Qwen2-VL, but most blocks see windows, and tokens run through the tower window by window."""

    name: ClassVar[str] = "qwen2.5-vl"
    title: ClassVar[str] = "Qwen2.5-VL"
    model_types: ClassVar[tuple[str, ...]] = ("qwen2_5_vl",)
    example: ClassVar[str] = "Qwen/Qwen2.5-VL-3B-Instruct"

    def timestamps(self, core: Any, arguments: Mapping[str, Any], clip: int, clips: int, frames: int) -> Tensor | None:
        """From `second_per_grid_ts`, the seconds that each raster of patches stands for: the mean of its frames."""
        seconds = arguments.get("second_per_grid_ts")
        if seconds is None:
            return None
        step, depth = float(seconds[clip * len(seconds) // clips]), core.config.vision_config.temporal_patch_size
        return step * (torch.arange(frames) + (depth - 1) / (2 * depth))

    def spread(self, core: Any, modality: str, call: Mapping[str, Any], output: Any, values: Tensor) -> list[Tensor]:
        """As `Family.spread`, back from the order of windows."""
        visual = core.visual
        order, _ = get_vision_window_index(
            call[f"{modality}_grid_thw"],
            spatial_merge_size=visual.spatial_merge_size,
            window_size=visual.window_size,
            patch_size=visual.patch_size,
        )
        order = order.to(values.device)
        merged = values.unflatten(0, (-1, self.merge)).mean(dim=1)
        return list(merged[order.argsort()].split(self.counts(output)))
