"""Configuration of SiT."""

from __future__ import annotations

from itertools import accumulate
from typing import Any, Self

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.encoders.configuration import EncoderConfig

#: The paper's sizes: width, heads, blocks per stage, convolutions of the stem, what residual branches are divided by,
#: and the side of images.
SIZES: dict[str, tuple[int, int, tuple[int, ...], int, float, int]] = {
    "t": (320, 5, (1, 1, 1, 11), 4, 2.0, 224),
    "xs": (384, 6, (1, 1, 1, 13), 4, 2.0, 224),
    "s": (384, 6, (9, 3, 2, 2), 4, 2.0, 224),
    "m": (512, 8, (10, 4, 3, 3), 4, 2.0, 224),
    "l": (768, 12, (10, 4, 3, 7), 6, 3.0, 288),
}
#: Pixels per patch: the stem has four convolutions of stride 2.
STRIDE = 16


class SiTConfig(EncoderConfig):
    """Configuration of a [`SiTModel`]; the defaults are SiT-S, and `of_size` gives the other sizes of the paper.

    Takes what [`EncoderConfig`] takes, and in addition:

    Args:
        num_attention_heads (`int`): Heads; they divide the width.
        intermediate_size (`int`): Hidden width of the MLPs.
        stage_blocks (`list[int]`): Blocks of every stage; their sum is `num_hidden_layers`.
        keeping_ratio (`float`): Share of tokens that a slimming module leaves: stage i, from 0 on, runs on
            floor(N keeping_ratio^i) tokens of N patches.
        slimming (`bool`): Whether tokens are slimmed; without, it is the LV-ViT that teaches.
        reverse_modules (`bool`): Whether there are modules that recover all tokens of every layer, for distillation.
        stem_convolutions (`int`): Convolutions of the stem, 4 or 6.
        residual_divisor (`float`): What the outputs of attention and MLP are divided by before they are added.
        num_labels (`int`): Classes of [`SiTForImageClassification`].
        layer_norm_eps (`float`): Of the layer norms.
    """

    model_type = "sit"

    hidden_size: int = 384
    num_hidden_layers: int = 16
    num_attention_heads: int = 6
    intermediate_size: int = 1152
    stage_blocks: list[int] | tuple[int, ...] = (9, 3, 2, 2)
    keeping_ratio: float = 0.5
    slimming: bool = True
    reverse_modules: bool = True
    stem_convolutions: int = 4
    residual_divisor: float = 2.0
    layer_norm_eps: float = 1e-5

    @classmethod
    def of_size(cls, size: str, **fields: Any) -> Self:
        """The configuration of a size of the paper: "t", "xs", "s", "m" or "l".

        Args:
            size: The size.
            **fields: Other fields, such as `slimming=False` for the teacher of this size.

        Raises:
            FoveateError: There is no such size, or a field has an impossible value.
        """
        if size not in SIZES:
            raise FoveateError(f"there is no SiT of size {size!r}; possible are {', '.join(SIZES)}.")
        width, heads, blocks, convolutions, divisor, side = SIZES[size]
        values: dict[str, Any] = {
            "image_size": side,
            "hidden_size": width,
            "num_hidden_layers": sum(blocks),
            "num_attention_heads": heads,
            "intermediate_size": 3 * width,
            "stage_blocks": list(blocks),
            "stem_convolutions": convolutions,
            "residual_divisor": divisor,
        }
        return cls(**values | fields)

    def check(self) -> None:
        """See `EncoderConfig.check`."""
        for name in ("num_attention_heads", "intermediate_size"):
            self.positive(name)
        self.positive_list("stage_blocks")
        if sum(self.stage_blocks) != self.num_hidden_layers:
            raise FoveateError(
                f"the sum of stage_blocks of sit must be num_hidden_layers, {self.num_hidden_layers}, and of "
                f"{self.stage_blocks} it is {sum(self.stage_blocks)}."
            )
        if not 0 < self.keeping_ratio <= 1:
            raise FoveateError(f"keeping_ratio of sit must be above 0 and at most 1, not {self.keeping_ratio}.")
        if self.hidden_size % self.num_attention_heads:
            raise FoveateError(
                f"the {self.num_attention_heads} heads of sit do not divide its width {self.hidden_size}."
            )
        if self.hidden_size % 8:
            raise FoveateError(f"the stem of sit needs a width that is a multiple of 8, not {self.hidden_size}.")
        if self.stem_convolutions not in (4, 6):
            raise FoveateError(f"stem_convolutions of sit must be 4 or 6, not {self.stem_convolutions}.")
        if self.patch_size != STRIDE:
            raise FoveateError(
                f"patch_size of sit must be {STRIDE}, as its stem has this stride, not {self.patch_size}."
            )
        if self.stage_tokens[-1] < 1:
            raise FoveateError(
                f"a keeping_ratio of {self.keeping_ratio} leaves no token of {self.stage_tokens[0]} patches after "
                f"{len(self.stage_blocks)} stages; choose a larger one."
            )

    @property
    def spatial(self) -> bool:
        """See `EncoderConfig.spatial`."""
        return not self.slimmed_after

    @property
    def slimmed_after(self) -> list[int]:
        """Number of blocks after which each slimming module runs."""
        return list(accumulate(self.stage_blocks))[:-1] if self.slimming else []

    @property
    def stage_tokens(self) -> list[int]:
        """Tokens of every stage, for images of `image_size`; those after the first do not depend on the image."""
        patches = (self.image_size // self.patch_size) ** 2
        return [int(patches * self.keeping_ratio**stage) for stage in range(len(self.stage_blocks))]

    def reduced(self, patches: Grid) -> Grid:
        """See `EncoderConfig.reduced`.

        Raises:
            FoveateError: The image has fewer patches than the first slimming module gives tokens.
        """
        if not self.slimmed_after:
            return patches
        tokens = self.stage_tokens
        if patches.size < tokens[1]:
            raise FoveateError(
                f"the encoder sit makes {tokens[1]} tokens of the patches of an image, and this one has only "
                f"{patches.size}."
            )
        return Grid(1, tokens[-1])

    def tower_options(self) -> dict[str, Any]:
        """See `EncoderConfig.tower_options`."""
        return {"output_recovered": False}
