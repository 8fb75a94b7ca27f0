"""Configuration of LookupViT."""

from __future__ import annotations

import math
from typing import Any

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.encoders.configuration import EncoderConfig

OUTPUTS = ("compressed", "lookup")


class LookupViTConfig(EncoderConfig):
    """Configuration of a [`LookupViTModel`]; the defaults are ViT-B/16 with 7 x 7 compressed tokens.

    Takes what [`EncoderConfig`] takes, and in addition:

    Args:
        num_attention_heads (`int`): Heads of all attentions; they divide the width.
        intermediate_size (`int`): Hidden width of the MLP on compressed tokens.
        lookup_intermediate_size (`int`): Hidden width of the light MLP on lookup tokens.
        compressed_side (`int`): Side m of the m x m compressed tokens.
        training_sides (`list[int]`): Sides of which one is drawn for every training step, so that one model serves
            several; empty: `compressed_side` alone. In a LLaVA the plan `nested:n` chooses one of them for a request,
            and the stage of a recipe draws one for every batch; `compressed_side` is the length without a plan.
        normalize_scatter (`bool`): Divide the transposed attention map by its sum over the compressed tokens.
        output (`str`): `"compressed"`: the m x m compressed tokens; `"lookup"`: one token per patch.
        layer_norm_eps (`float`): Of the layer norms.
    """

    model_type = "lookupvit"

    num_attention_heads: int = 12
    intermediate_size: int = 3072
    lookup_intermediate_size: int = 384
    compressed_side: int = 7
    training_sides: list[int] | tuple[int, ...] = ()
    normalize_scatter: bool = False
    output: str = "compressed"
    layer_norm_eps: float = 1e-6

    def check(self) -> None:
        """See `EncoderConfig.check`."""
        names = ("num_attention_heads", "intermediate_size", "lookup_intermediate_size", "compressed_side")
        for name in names:
            self.positive(name)
        self.positive_list("training_sides")
        if self.hidden_size % self.num_attention_heads:
            raise FoveateError(
                f"the {self.num_attention_heads} heads of lookupvit do not divide its width {self.hidden_size}."
            )
        if self.output not in OUTPUTS:
            raise FoveateError(f"output of lookupvit must be {' or '.join(OUTPUTS)}, not {self.output!r}.")
        side = self.image_size // self.patch_size
        for training_side in self.training_sides:
            self.compressed_grid(Grid(side, side), training_side**2)

    def reduced(self, patches: Grid) -> Grid:
        """See `EncoderConfig.reduced`.

        Raises:
            FoveateError: There are fewer patches in a direction than compressed tokens.
        """
        compressed = self.compressed_grid(patches)
        return compressed if self.output == "compressed" else patches

    def compressed_grid(self, patches: Grid, num_compressed: int | None = None) -> Grid:
        """Rows and columns of the compressed tokens.

        Args:
            patches: Of the image.
            num_compressed: Their number, a square; None: that of `compressed_side`.

        Raises:
            FoveateError: It is no square, or there are fewer patches in a direction.
        """
        side = self.compressed_side if num_compressed is None else math.isqrt(max(num_compressed, 0))
        if num_compressed is not None and side**2 != num_compressed:
            raise FoveateError(f"lookupvit has m x m compressed tokens: {num_compressed} is no square number.")
        if not 1 <= side <= min(patches):
            raise FoveateError(
                f"lookupvit makes {side} x {side} compressed tokens, and this image has {patches.rows} x "
                f"{patches.columns} patches; choose a side from 1 to {min(patches)}."
            )
        return Grid(side, side)

    def length_grids(self) -> tuple[Grid, ...]:
        """See `EncoderConfig.length_grids`: those of `training_sides` and of `compressed_side`."""
        if self.output != "compressed" or not self.training_sides:
            return ()
        return tuple(Grid(side, side) for side in sorted({*self.training_sides, self.compressed_side}))

    def length_options(self, grid: Grid) -> dict[str, Any]:
        """See `EncoderConfig.length_options`."""
        return {"num_compressed": grid.size}

    def tower_options(self) -> dict[str, Any]:
        """See `EncoderConfig.tower_options`."""
        return {"num_compressed": self.compressed_side**2} if self.output == "compressed" else {}
