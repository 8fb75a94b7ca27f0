"""Qwen2-VL, Qwen2.5-VL and what is built like them: native resolution, 2 x 2 merger, M-RoPE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers.vision_utils import get_vision_window_index

from foveate.families.family import Family, ImageLayout, frame_crops


class Qwen2VL(Family):
    """Qwen2-VL: tokens arrive in groups of four, which the merger joins; a clip is `t` rasters."""

    name: ClassVar[str] = "qwen2-vl"
    title: ClassVar[str] = "Qwen2-VL"
    model_types: ClassVar[tuple[str, ...]] = ("qwen2_vl",)
    merge: ClassVar[int] = 4

    def blocks(self, core: Any) -> list[nn.Module]:
        """The encoder's blocks."""
        return list(core.visual.blocks)

    def layouts(self, core: Any, modality: str, call: Mapping[str, Any], output: Any) -> list[ImageLayout]:
        """A raster an image, `t` of them a clip."""
        side = core.visual.spatial_merge_size
        patch = core.config.vision_config.patch_size
        device = output.pooler_output[0].device
        found = []
        for frames, rows, columns in call[f"{modality}_grid_thw"].tolist():
            crops = frame_crops(frames, rows // side, columns // side, device)
            size = (rows * patch, columns * patch)
            found.append(ImageLayout(frames * (rows // side) * (columns // side), crops, size=size))
        return found


class Qwen25VL(Qwen2VL):
    """Qwen2.5-VL: as Qwen2-VL, but most blocks see windows, and tokens run through the tower window by window."""

    name: ClassVar[str] = "qwen2.5-vl"
    title: ClassVar[str] = "Qwen2.5-VL"
    model_types: ClassVar[tuple[str, ...]] = ("qwen2_5_vl",)

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
