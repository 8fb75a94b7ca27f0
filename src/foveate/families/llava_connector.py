"""LLaVA with a connector of foveate: one image, one raster, merged by the connector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from foveate.core.errors import FoveateError, Refusal
from foveate.core.grouping import indices_by_value
from foveate.core.method import Site
from foveate.core.tokens import EncoderSpec, Grid
from foveate.families.family import (
    OUTSIDE_ENCODER,
    ImageLayout,
    check_connector,
    grid_before,
    grid_crop,
    resize,
    spread_by,
)
from foveate.families.llava import Llava

if TYPE_CHECKING:
    from foveate.core.plan import Plan


class LlavaConnector(Llava):
    """LLaVA whose connector may merge tokens: a vision tower, and the connector of its configuration.

    Views of an image (slices, crops, an overview) stand in the prompt with text between them, and each is budgeted as
    an image. They may have several sizes (`image_sizes`); those of one size are one call of the tower.

    Plans on encoders of `foveate.models.encoders` act on the tokens after the connector and measure nothing before it:
    blocks of these encoders differ from those of CLIP, and have other numbers of tokens.
    """

    name: ClassVar[str] = "foveate-llava"
    title: ClassVar[str] = "foveate LLaVA"
    model_types: ClassVar[tuple[str, ...]] = ("foveate_llava",)
    example: ClassVar[str] = ""
    connectors: ClassVar[bool] = True
    raster_features: ClassVar = None  # a connector may read neighbours
    patchwise: ClassVar[bool] = False  # tokens that methods merge inside the encoder are no raster for a connector

    def check(self, core: Any, plan: Plan) -> None:
        """See `Family.check`."""
        check_connector(self.nested_part(core), plan)
        super().check(core, plan)
        if not _is_encoder(core):
            return
        encoder = core.config.vision_config.model_type
        check_outside_encoder(plan, self.tower(core), f"{encoder} is not built as CLIP and SigLIP are")

    def nested_part(self, core: Any) -> Any:
        """See `Family.nested_part`: the connector or the encoder."""
        return core.nested_part

    def blocks(self, core: Any) -> list[nn.Module]:
        """The encoder's blocks, none where they cannot be measured."""
        return [] if _is_encoder(core) else super().blocks(core)

    def tower(self, core: Any) -> EncoderSpec:
        """The encoder, and how many patches the connector merges into a token."""
        if _is_encoder(core):
            blocks = core.config.vision_config.num_hidden_layers
            return EncoderSpec(blocks, False, core.multi_modal_projector.multiple**2, blocks - 1)
        spec = super().tower(core)
        connector = core.multi_modal_projector
        return replace(spec, merge=connector.multiple**2, spatial=connector.spatial)

    def output_layer(self, core: Any) -> int:
        """The last block that the connector reads."""
        blocks = len(self.blocks(core))
        layers = core.multi_modal_projector.feature_layers(blocks)
        if not layers:
            return super().output_layer(core)
        return max(layer % (blocks + 1) for layer in layers) - 1

    def encoder_grids(self, core: Any, call: Mapping[str, Any]) -> list[Grid]:
        """Grids of the patches."""
        return super().grids(core, "image", call)

    def grids(self, core: Any, modality: str, call: Mapping[str, Any]) -> list[Grid]:
        """One raster an image, after the connector."""
        return [core.multi_modal_projector.output_grid(grid) for grid in self.encoder_grids(core, call)]

    def shrink(self, core: Any, modality: str, call: Mapping[str, Any], grids: Sequence[Grid]) -> dict[str, Any]:
        """Smaller pixels, of which the connector makes the requested grid; views are padded again to one size."""
        before = [grid_before(core.multi_modal_projector, grid) for grid in grids]
        sizes = _sizes(call)
        if sizes is None:
            return super().shrink(core, modality, call, before)
        patch, pixels = core.config.vision_config.patch_size, call["pixel_values"]
        smaller = [(grid.rows * patch, grid.columns * patch) for grid in before]
        small = pixels.new_zeros(*pixels.shape[:2], *map(max, zip(*smaller, strict=True)))
        for place, ((height, width), size) in enumerate(zip(sizes, smaller, strict=True)):
            small[place, :, : size[0], : size[1]] = resize(pixels[place, None, :, :height, :width], size)[0]
        return {**call, "pixel_values": small, "image_sizes": torch.tensor(smaller, device=pixels.device)}

    def layouts(self, core: Any, modality: str, call: Mapping[str, Any], output: Any) -> list[ImageLayout]:
        """One raster an image."""
        patch, device = core.config.vision_config.patch_size, output.pooler_output[0].device
        if _is_encoder(core):
            grids = self.grids(core, modality, call)
            sizes = _sizes(call) or [tuple(call["pixel_values"].shape[-2:])] * len(grids)
            return [
                ImageLayout(grid.size, grid_crop(*grid, device), size=size)
                for grid, size in zip(grids, sizes, strict=True)
            ]
        return [
            ImageLayout(grid.size, grid_crop(*grid, device), size=(before.rows * patch, before.columns * patch))
            for grid, before in zip(self.grids(core, modality, call), self.encoder_grids(core, call), strict=True)
        ]

    def spread(self, core: Any, modality: str, call: Mapping[str, Any], output: Any, values: Tensor) -> list[Tensor]:
        """Means of the patches that the connector merges."""
        grids, order = self.encoder_grids(core, call), _encoded_order(call)
        encoded = values.split([grids[place].size for place in order])
        images = dict(zip(order, encoded, strict=True))
        return [spread_by(core.multi_modal_projector, images[place], grid) for place, grid in enumerate(grids)]

    def per_image(self, core: Any, call: Mapping[str, Any], values: Tensor) -> list[Tensor]:
        """See `Family.per_image`; in the order of the images."""
        of_image = dict(zip(_encoded_order(call), values, strict=True))
        return [of_image[place] for place in range(len(values))]


def check_outside_encoder(plan: Plan, tower: EncoderSpec, reason: str) -> None:
    """Refuse a plan that acts on or measures the encoder.

    Args:
        plan: The plan.
        tower: The encoder.
        reason: Why it cannot, as a clause.

    Raises:
        FoveateError: as said.
    """
    for step in plan.steps:
        needs = step.method.needs(tower)
        if step.method.site in (Site.IMAGE, Site.ENCODER) or any(n.kind not in OUTSIDE_ENCODER for n in needs):
            raise FoveateError(
                Refusal(
                    "needs-plain-encoder",
                    f"{step.method.name} acts on or measures the encoder, and {reason}",
                    "choose a method that reads only the tokens after the connector, such as divprune",
                )
            )


def _is_encoder(core: Any) -> bool:
    """Whether the vision tower is an encoder of `foveate.models.encoders`."""
    return hasattr(core.config.vision_config, "output_grid")


def _sizes(call: Mapping[str, Any]) -> list[tuple[int, int]] | None:
    """Height and width of every view, where the call has them."""
    sizes = call.get("image_sizes")
    return None if sizes is None else [(int(height), int(width)) for height, width in sizes]


def _encoded_order(call: Mapping[str, Any]) -> list[int]:
    """Images of a call in the order in which the tower reads them: views of one size together."""
    sizes = _sizes(call)
    if sizes is None:
        return list(range(len(call["pixel_values"])))
    return [place for members in indices_by_value(sizes).values() for place in members]
