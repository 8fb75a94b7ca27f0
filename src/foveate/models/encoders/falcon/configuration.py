"""Configuration of FALCON's encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.encoders.configuration import EncoderConfig
from foveate.models.encoders.falcon.crops import crop_positions

GEOMETRIES = ("siglip", "clip")


class FalconVisionConfig(EncoderConfig):
    """Configuration of a [`FalconVisionModel`]; the defaults are SigLIP-L/16 at 384 pixels with 64 registers.

    Takes what [`EncoderConfig`] takes, and in addition:

    Args:
        geometry (`str`): `"siglip"` or `"clip"`, whose layers the encoder has. CLIP has [CLS], a layer norm before the
            blocks, none after them, no bias of the patch embedding, and quick GELU.
        num_attention_heads (`int`): Heads; they divide the width.
        intermediate_size (`int`): Hidden width of the MLPs.
        num_registers (`int`): Registers M, the tokens that a crop becomes.
        max_crops (`int`): The most crops that an image is cut into, and the largest row or column of a crop; the tables
            of crop positions have one more entry, for the whole image.
        re_attention (`bool`): Whether registers of the crops of one image attend to each other in every block.
        layer_norm_eps (`float`): Of the layer norms; 1e-5 in CLIP.
    """

    model_type = "falcon_vision"  # "falcon" is a language model of transformers

    image_size: int = 384
    hidden_size: int = 1024
    num_hidden_layers: int = 24
    geometry: str = "siglip"
    num_attention_heads: int = 16
    intermediate_size: int = 4096
    num_registers: int = 64
    max_crops: int = 16
    re_attention: bool = True
    layer_norm_eps: float = 1e-6

    def check(self) -> None:
        """See `EncoderConfig.check`."""
        for name in ("num_attention_heads", "intermediate_size", "num_registers", "max_crops"):
            self.positive(name)
        if self.geometry not in GEOMETRIES:
            raise FoveateError(f"geometry of falcon_vision must be {' or '.join(GEOMETRIES)}, not {self.geometry!r}.")
        if self.hidden_size % self.num_attention_heads:
            raise FoveateError(
                f"the {self.num_attention_heads} heads of falcon_vision do not divide its width {self.hidden_size}."
            )

    @property
    def spatial(self) -> bool:
        """See `EncoderConfig.spatial`."""
        return False

    def reduced(self, patches: Grid) -> Grid:
        """See `EncoderConfig.reduced`."""
        return Grid(1, self.num_registers)

    def crop_options(self, grids: Sequence[Grid]) -> dict[str, Any]:
        """See `EncoderConfig.crop_options`.

        Raises:
            FoveateError: An image has more crops than there are positions.
        """
        if (most := max(grid.size for grid in grids)) > self.max_crops:
            raise FoveateError(f"an image has {most} crops, and falcon_vision has positions for {self.max_crops}.")
        return {
            "crop_positions": torch.cat([crop_positions(grid, self.max_crops) for grid in grids]),
            "crops_per_image": [1 + grid.size for grid in grids],
        }
