"""foveate's LLaVA-UHD: ViT-UHD merges 2 x 2 tokens several times between its blocks; or another encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

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
from foveate.families.llava_connector import check_outside_encoder

if TYPE_CHECKING:
    from foveate.core.plan import Plan


class LlavaUHD(Family):
    """LLaVA-UHD: native resolution, packed patches.

    Plans on encoders of `foveate.models.encoders` act on the tokens after the connector and measure nothing before it.
    """

    name: ClassVar[str] = "llava-uhd"
    title: ClassVar[str] = "LLaVA-UHD"
    model_types: ClassVar[tuple[str, ...]] = ("llava_uhd",)
    connectors: ClassVar[bool] = True

    def check(self, core: Any, plan: Plan) -> None:
        """See `Family.check`."""
        super().check(core, plan)
        if _is_encoder(core):
            encoder = core.config.vision_config.model_type
            check_outside_encoder(plan, self.tower(core), f"{encoder} is not built as ViT-UHD is")

    def nested_part(self, core: Any) -> Any:
        """See `Family.nested_part`: the connector or the encoder."""
        return core.nested_part

    def blocks(self, core: Any) -> list[nn.Module]:
        """The encoder's blocks, none where they cannot be measured."""
        return [] if _is_encoder(core) else list(core.vision_tower.encoder.blocks)

    def attention(self, block: nn.Module) -> nn.Module:
        """Blocks of ViT-UHD attend themselves."""
        return block

    def tower(self, core: Any) -> EncoderSpec:
        """Every stage joins four tokens, and the connector may join some more."""
        vision, connector = core.config.vision_config, core.multi_modal_projector
        merge = 4 ** getattr(vision, "num_stages", 0) * connector.multiple**2
        blocks = vision.num_hidden_layers
        return EncoderSpec(blocks, False, merge, blocks - 1, connector.spatial)

    def grids(self, core: Any, modality: str, call: Mapping[str, Any]) -> list[Grid]:
        """One raster an image."""
        return [core.multi_modal_projector.output_grid(grid) for grid in self.encoder_grids(core, call)]

    def encoder_grids(self, core: Any, call: Mapping[str, Any]) -> list[Grid]:
        """Grids of the tokens that leave the encoder."""
        return [core.config.encoder_grid(rows, columns) for rows, columns in call["grid_hws"].tolist()]

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
        patch, device = core.config.square_size, output.pooler_output[0].device
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


def _is_encoder(core: Any) -> bool:
    """Whether the vision tower is an encoder of `foveate.models.encoders`."""
    return not hasattr(core.config.vision_config, "num_stages")
