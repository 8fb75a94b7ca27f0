"""LLaVA-1.5 and models built like it: one image, one raster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import nn

from foveate.core.connector import RasterMethod
from foveate.core.errors import FoveateError, Refusal
from foveate.core.method import Site
from foveate.core.tokens import Grid, encoder_grid
from foveate.families.family import Family, ImageLayout, grid_crop, resize

if TYPE_CHECKING:
    from foveate.core.plan import Plan


class Llava(Family):
    """LLaVA-1.5: a CLIP, SigLIP or Pixtral tower, and an MLP on every token."""

    name: ClassVar[str] = "llava"
    title: ClassVar[str] = "LLaVA-1.5"
    model_types: ClassVar[tuple[str, ...]] = ("llava",)
    example: ClassVar[str] = "llava-hf/llava-1.5-7b-hf"
    cls_tokens: ClassVar[tuple[bool, ...]] = (True, False)  # CLIP's encoder has one, SigLIP's and Pixtral's have none
    patchwise: ClassVar[bool] = True
    raster_features: ClassVar[Literal["before-projector", "after-merger"] | None] = "before-projector"

    def blocks(self, core: Any) -> list[nn.Module]:
        """The encoder's blocks."""
        return list(encoder_layers(core.vision_tower))

    def has_cls(self, core: Any) -> bool:
        """Whether there is a [CLS] token: CLIP has one."""
        return has_class_embedding(core.vision_tower)

    def output_layer(self, core: Any) -> int:
        """The block that `vision_feature_layer` reads."""
        return feature_layer(core, len(self.blocks(core)))

    def check(self, core: Any, plan: Plan) -> None:
        """See `Family.check`."""
        check_features(self, core, plan)
        method = plan.steps[0].method
        if isinstance(method, RasterMethod) and core.config.vision_config.model_type == "pixtral":
            raise FoveateError(
                Refusal(
                    "needs-one-raster",
                    f"{method.name} acts on features before the projector, where those of all images of a Pixtral "
                    "encoder are one sequence",
                    "choose a method that acts before the language model",
                )
            )

    def grids(self, core: Any, modality: str, call: Mapping[str, Any]) -> list[Grid]:
        """One raster an image; Pixtral's has the proportions of the image."""
        vision = core.config.vision_config
        if call.get("image_sizes") is not None:
            return [encoder_grid(vision, int(height), int(width)) for height, width in call["image_sizes"]]
        return [encoder_grid(vision, *call["pixel_values"].shape[-2:])] * len(call["pixel_values"])

    def shrink(self, core: Any, modality: str, call: Mapping[str, Any], grids: Sequence[Grid]) -> dict[str, Any]:
        """Smaller pixels; the tower interpolates its positions."""
        if call.get("image_sizes") is not None:
            raise FoveateError(
                Refusal(
                    "needs-one-raster",
                    "images of a Pixtral encoder cannot be made smaller on the way to it",
                    "their processor can",
                )
            )
        (grid,) = set(grids)
        patch = core.config.vision_config.patch_size
        pixels = resize(call["pixel_values"], (grid.rows * patch, grid.columns * patch))
        return {**call, "pixel_values": pixels, "interpolate_pos_encoding": True}

    def layouts(self, core: Any, modality: str, call: Mapping[str, Any], output: Any) -> list[ImageLayout]:
        """One raster an image; Pixtral's has the proportions of the image."""
        patch, device = core.config.vision_config.patch_size, output.pooler_output[0].device
        return [
            ImageLayout(grid.size, grid_crop(*grid, device), size=(grid.rows * patch, grid.columns * patch))
            for grid in self.grids(core, modality, call)
        ]


def check_features(family: Family, core: Any, plan: Plan) -> None:
    """Refuse plans where features of the encoder are chosen in another way than patch by patch.

    Raises:
        FoveateError: [CLS] is among the tokens; or the plan merges inside the encoder, and features of several of its
            blocks are read.
    """
    strategy = getattr(core.config, "vision_feature_select_strategy", None)
    has_cls = family.has_cls(core)
    if has_cls and strategy == "full":
        raise FoveateError(
            Refusal(
                "needs-plain-patches",
                f"{plan} cannot be attached: this model keeps [CLS] among an image's tokens "
                "(vision_feature_select_strategy='full'), which are then no raster",
                "'default' leaves it out",
            )
        )
    if not has_cls and strategy == "default":
        raise FoveateError(
            Refusal(
                "needs-plain-patches",
                f"{plan} cannot be attached: this model leaves out the first of an image's patches "
                "(vision_feature_select_strategy='default'), as its encoder has no [CLS]",
                "'full' keeps all",
            )
        )
    layer = getattr(core.config, "vision_feature_layer", -1)
    if not isinstance(layer, int) and plan.steps[0].method.site is Site.ENCODER:
        raise FoveateError(
            Refusal(
                "needs-one-encoder-output",
                f"{plan.steps[0].method.name} merges inside the encoder, and this model reads features of several of "
                f"its blocks (vision_feature_layer={list(layer)}), which would be of different tokens",
            )
        )


def encoder_layers(tower: Any) -> nn.ModuleList:
    """The blocks of a CLIP, SigLIP or Pixtral tower, with or without a wrapper around it."""
    tower = getattr(tower, "vision_model", tower)
    encoder = getattr(tower, "encoder", None) or tower.transformer
    return encoder.layers


def has_class_embedding(tower: Any) -> bool:
    """Whether a tower puts a [CLS] token before the patches."""
    tower = getattr(tower, "vision_model", tower)
    return hasattr(getattr(tower, "embeddings", None), "class_embedding")


def feature_layer(core: Any, blocks: int) -> int:
    """The block (0-based) whose output is `hidden_states[vision_feature_layer]`; of several the last."""
    layer = core.config.vision_feature_layer
    layer = layer if isinstance(layer, int) else max(n if n >= 0 else n + blocks + 1 for n in layer)
    return (layer if layer >= 0 else layer + blocks + 1) - 1
