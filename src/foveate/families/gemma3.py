"""Gemma 3: a SigLIP tower with mean pooling, and bidirectional attention within images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from foveate import compat
from foveate.core.tokens import EncoderSpec, Grid
from foveate.families.family import Family, ImageLayout, grid_crop, pool
from foveate.families.llava import encoder_layers


class Gemma3(Family):
    """Gemma 3: one raster of fixed size an image; what "pan and scan" cuts out comes as further images."""

    name: ClassVar[str] = "gemma3"
    title: ClassVar[str] = "Gemma 3"
    model_types: ClassVar[tuple[str, ...]] = ("gemma3",)
    example: ClassVar[str] = "google/gemma-3-4b-it"
    first_layer: ClassVar[bool] = False  # positions are rotated differently in sliding and in full layers

    def blocks(self, core: Any) -> list[nn.Module]:
        """The encoder's blocks."""
        return list(encoder_layers(core.vision_tower))

    def tower(self, core: Any) -> EncoderSpec:
        """The side of the squares that are pooled follows from the number of tokens."""
        blocks = len(self.blocks(core))
        return EncoderSpec(blocks, False, core.multi_modal_projector.kernel_size**2, blocks - 1)

    def layouts(self, core: Any, modality: str, call: Mapping[str, Any], output: Any) -> list[ImageLayout]:
        """One square raster an image."""
        side = core.multi_modal_projector.tokens_per_side
        crops = grid_crop(side, side, output.pooler_output.device)
        size = tuple(call["pixel_values"].shape[-2:])
        return [ImageLayout(side**2, crops, size=size) for _ in output.pooler_output]

    def spread(self, core: Any, modality: str, call: Mapping[str, Any], output: Any, values: Tensor) -> list[Tensor]:
        """Means of the patches that are pooled."""
        patches = core.multi_modal_projector.patches_per_image
        side = core.multi_modal_projector.kernel_size
        return [pool(image_values, Grid(patches, patches), side) for image_values in values.split(patches**2)]

    def mask(self, core: Any, arguments: Mapping[str, Any], types: Tensor | None, images: bool) -> Any:
        """Bidirectional within an image, whose tokens have type 1."""
        from transformers import Gemma3ForConditionalGeneration  # slow to import

        return Gemma3ForConditionalGeneration.create_masks_for_generate(
            core.config,
            arguments["inputs_embeds"],
            arguments["attention_mask"],
            compat.cache_in(arguments),
            arguments["position_ids"],
            token_type_ids=types,
        )
