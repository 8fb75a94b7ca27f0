"""foveate's LLaVA-UHD: ViT-UHD merges 2 x 2 tokens several times between its blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foveate.core.tokens import EncoderSpec, Grid
from foveate.families.family import (
    Family,
    ImageLayout,
    grid_before,
    grid_crop,
    shrink_patches,
    spread_by,
)


class LlavaUHD(Family):
    """LLaVA-UHD: native resolution, packed patches."""

    name: ClassVar[str] = "llava-uhd"
    title: ClassVar[str] = "LLaVA-UHD"
    model_types: ClassVar[tuple[str, ...]] = ("llava_uhd",)
    connectors: ClassVar[bool] = True

    def blocks(self, core: Any) -> list[nn.Module]:
        """The encoder's blocks."""
        return list(core.vision_tower.encoder.blocks)

    def attention(self, block: nn.Module) -> nn.Module:
        """Blocks of ViT-UHD attend themselves."""
        return block

    def tower(self, core: Any) -> EncoderSpec:
        """Every stage joins four tokens, and the connector may join some more."""
        blocks = len(self.blocks(core))
        connector = core.multi_modal_projector
        merge = 4**core.config.vision_config.num_stages * connector.multiple**2
        return EncoderSpec(blocks, False, merge, blocks - 1, connector.spatial)

    def grids(self, core: Any, modality: str, call: Mapping[str, Any]) -> list[Grid]:
        """One raster an image."""
        return [core.multi_modal_projector.output_grid(grid) for grid in self.encoder_grids(core, call)]

    def encoder_grids(self, core: Any, call: Mapping[str, Any]) -> list[Grid]:
        """Grids of the tokens that leave the encoder."""
        side = 2**core.config.vision_config.num_stages
        return [Grid(rows // side, columns // side) for rows, columns in call["grid_hws"].tolist()]

    def shrink(self, core: Any, modality: str, call: Mapping[str, Any], grids: Sequence[Grid]) -> dict[str, Any]:
        """Patches of smaller images."""
        side = 2**core.config.vision_config.num_stages
        old = [Grid(rows, columns) for rows, columns in call["grid_hws"].tolist()]
        before = [grid_before(core.multi_modal_projector, grid) for grid in grids]
        new = [Grid(side * grid.rows, side * grid.columns) for grid in before]
        parts = call["pixel_values"].split([grid.size for grid in old])
        small = [shrink_patches(*image) for image in zip(parts, old, new, strict=True)]
        return {**call, "pixel_values": torch.cat(small), "grid_hws": torch.tensor(new, device=call["grid_hws"].device)}

    def layouts(self, core: Any, modality: str, call: Mapping[str, Any], output: Any) -> list[ImageLayout]:
        """One raster an image."""
        patch, device = core.config.vision_config.patch_size, output.pooler_output[0].device
        return [
            ImageLayout(rows * columns, grid_crop(rows, columns, device), size=(height * patch, width * patch))
            for (rows, columns), (height, width) in zip(
                output.grid_hws.tolist(), call["grid_hws"].tolist(), strict=True
            )
        ]

    def spread(self, core: Any, modality: str, call: Mapping[str, Any], output: Any, values: Tensor) -> list[Tensor]:
        """Back from the order of the tower, then means over the stages still to come, and those of the connector."""
        tokens = core.vision_tower.spread(values, call["grid_hws"], len(call["pixel_values"]))
        grids = self.encoder_grids(core, call)
        images = tokens.split([grid.size for grid in grids])
        return [spread_by(core.multi_modal_projector, *image) for image in zip(images, grids, strict=True)]
