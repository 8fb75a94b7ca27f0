"""Configuration of OryxViT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from foveate.core.errors import FoveateError
from foveate.models.encoders.configuration import EncoderConfig


class OryxViTConfig(EncoderConfig):
    """Configuration of an [`OryxViTModel`]; the defaults are the authors', SigLIP-SO400M with patches of 16 pixels.

    Takes what [`EncoderConfig`] takes, and in addition the following. `image_size` sets the images of processors and
    recipes alone; the encoder reads all sizes that are multiples of the patch.

    Args:
        num_attention_heads (`int`): Heads; they divide the width.
        intermediate_size (`int`): Hidden width of the MLPs.
        position_side (`int`): Rows and columns of the table of positions, which is resized to the grid of every image.
            128 are the patches of an image of 2048 x 2048 pixels.
        layer_norm_eps (`float`): Of the layer norms.

    Example:
        >>> OryxViTConfig().output_grid(448, 640)
        Grid(rows=28, columns=40)
    """

    model_type = "oryx_vit"
    released_normalization: ClassVar[Mapping[str, list[float]]] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}

    image_size: int = 384
    hidden_size: int = 1152
    num_hidden_layers: int = 27
    num_attention_heads: int = 16
    intermediate_size: int = 4304
    position_side: int = 128
    layer_norm_eps: float = 1e-6

    def check(self) -> None:
        """See `EncoderConfig.check`."""
        for name in ("num_attention_heads", "intermediate_size", "position_side"):
            self.positive(name)
        if self.hidden_size % self.num_attention_heads:
            raise FoveateError(
                f"the {self.num_attention_heads} heads of oryx_vit do not divide its width {self.hidden_size}."
            )

    @classmethod
    def released_fields(cls, config: Mapping[str, Any], tower: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """See `EncoderConfig.released_fields`: the authors have one tower, whose place they write after its name."""
        named = str(config.get("mm_vision_tower")).startswith(f"{cls.model_type}:")
        return cls().to_dict() if tower is None and named else None
