"""Where the parts of the vision transformers of `transformers` are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Layout:
    """Names of the parts of a vision transformer.

    Args:
        patches: The convolution that makes tokens of patches.
        positions: The table of positions.
        blocks: The blocks.
        norm: The layer norm after the last block.
        pre_norm: The one before the first block, where there is one.
        has_cls: Whether the first token is [CLS].
        resizes: Whether positions are resized to any image without an option that says so.
        without: Fields of the configuration that leave out parts of which no token of an image depends.
    """

    patches: str
    positions: str
    blocks: str
    norm: str
    pre_norm: str | None = None
    has_cls: bool = True
    resizes: bool = False
    without: Mapping[str, Any] = field(default_factory=dict)

    def embed(self, tower: nn.Module, pixel_values: Tensor, image_size: int) -> Tensor:
        """The tokens `(B, N, D)` before the first block."""
        options = {}
        if not self.resizes:
            options["interpolate_pos_encoding"] = tuple(pixel_values.shape[-2:]) != (image_size, image_size)
        x = tower.get_submodule("embeddings")(pixel_values, **options)
        return x if self.pre_norm is None else tower.get_submodule(self.pre_norm)(x)

    def block(self, layer: int) -> str:
        """Name of the block whose output is `hidden_states[layer]`, from 1 on."""
        return f"{self.blocks}.{layer - 1}"


#: By `model_type`.
LAYOUTS = {
    "clip_vision_model": Layout(
        "embeddings.patch_embedding",
        "embeddings.position_embedding",
        "encoder.layers",
        "post_layernorm",
        "pre_layrnorm",
    ),
    "siglip_vision_model": Layout(
        "embeddings.patch_embedding",
        "embeddings.position_embedding",
        "encoder.layers",
        "post_layernorm",
        has_cls=False,
        without={"vision_use_head": False},
    ),
    "dinov2": Layout(
        "embeddings.patch_embeddings.projection",
        "embeddings.position_embeddings",
        "encoder.layer",
        "layernorm",
        resizes=True,
        without={"use_mask_token": False},
    ),
}


def core_of(tower: Any) -> Any:
    """The module with embeddings and blocks, which in older versions is a part of the towers of CLIP and SigLIP."""
    return getattr(tower, "vision_model", tower)
