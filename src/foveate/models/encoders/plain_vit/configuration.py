"""Configuration of the plain vision transformer."""

from __future__ import annotations

from typing import Any, Self

from foveate.core.errors import FoveateError
from foveate.models.encoders.configuration import EncoderConfig

#: Width and heads of the sizes of DeiT, which the paper trains; all have twelve blocks.
SIZES = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}


class PlainViTConfig(EncoderConfig):
    """Configuration of a [`PlainViTModel`]; the defaults are ViT-B/16, and `of_size` gives the other sizes.

    Takes what [`EncoderConfig`] takes, and in addition:

    Args:
        num_attention_heads (`int`): Heads; they divide the width.
        intermediate_size (`int`): Hidden width of the MLPs.
        layer_norm_eps (`float`): Of the layer norms.
    """

    model_type = "plain_vit"

    num_attention_heads: int = 12
    intermediate_size: int = 3072
    layer_norm_eps: float = 1e-6

    @classmethod
    def of_size(cls, size: str, **fields: Any) -> Self:
        """The configuration of a size: "tiny", "small" or "base".

        Args:
            size: The size.
            **fields: Other fields, such as `patch_size=1`.

        Raises:
            FoveateError: There is no such size, or a field has an impossible value.
        """
        if size not in SIZES:
            raise FoveateError(f"there is no plain ViT of size {size!r}; possible are {', '.join(SIZES)}.")
        width, heads = SIZES[size]
        values: dict[str, Any] = {"hidden_size": width, "num_attention_heads": heads, "intermediate_size": 4 * width}
        return cls(**values | fields)

    def check(self) -> None:
        """See `EncoderConfig.check`."""
        for name in ("num_attention_heads", "intermediate_size"):
            self.positive(name)
        if self.hidden_size % self.num_attention_heads:
            raise FoveateError(
                f"the {self.num_attention_heads} heads of plain_vit do not divide its width {self.hidden_size}."
            )
