"""Configuration of STViT."""

from __future__ import annotations

from typing import Any, Self

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.encoders.configuration import StagedConfig

#: The paper's sizes: widths, blocks and heads of the stages, and whether their residual branches have a layer scale.
SIZES: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[bool, ...]]] = {
    "small": ((64, 128, 320, 512), (3, 5, 9, 3), (1, 2, 5, 8), (False,) * 4),
    "base": ((96, 192, 384, 512), (4, 6, 14, 6), (2, 3, 6, 8), (False, False, True, True)),
    "large": ((96, 192, 448, 640), (4, 7, 19, 8), (2, 3, 7, 10), (False, False, True, True)),
}
#: Pixels per token of the first stage: the stem has two convolutions of stride 2.
STRIDE = 4
BORDERS = ("zero", "masked")


class STViTConfig(StagedConfig):
    """Configuration of a [`STViTModel`]; the defaults are STViT-S, and `of_size` gives the other sizes of the paper.

    Takes what [`StagedConfig`] takes, and in addition, with one value per stage in every list:

    Args:
        num_heads (`list[int]`): Heads of the attention; they divide the width.
        cell_sizes (`list[int]`): Side in tokens of the cells that start as one super token; 1: attention among all
            tokens.
        layer_scale (`list[bool]`): Whether residual branches are multiplied by a learned scale.
        num_iterations (`int`): How often tokens are associated with super tokens and these computed anew.
        border (`str`): What cells at the border do with the neighbours that they lack. `"zero"`, as the authors'
            weights were trained: each is a vector of zeros, whose share of the softmax is lost. `"masked"`: they have
            no share, and padding is not counted.
        mlp_ratio (`float`): Hidden width of the MLPs, in widths of the stage.
        layer_scale_init_value (`float`): Initial value of the layer scale.
        projection_size (`int`): Width of what [`STViTForImageClassification`] pools.
        num_labels (`int`): Its classes.
        layer_norm_eps (`float`): Of the layer norms.
    """

    model_type = "stvit"

    patch_size: int = STRIDE
    depths: list[int] | tuple[int, ...] = SIZES["small"][1]
    hidden_sizes: list[int] | tuple[int, ...] = SIZES["small"][0]
    num_heads: list[int] | tuple[int, ...] = SIZES["small"][2]
    cell_sizes: list[int] | tuple[int, ...] = (8, 4, 1, 1)
    layer_scale: list[bool] | tuple[bool, ...] = SIZES["small"][3]
    num_iterations: int = 1
    border: str = "zero"
    mlp_ratio: float = 4.0
    layer_scale_init_value: float = 1e-6
    projection_size: int = 1024
    layer_norm_eps: float = 1e-6

    @classmethod
    def of_size(cls, size: str, **fields: Any) -> Self:
        """The configuration of a size of the paper: "small", "base" or "large".

        Args:
            size: The size.
            **fields: Other fields.

        Raises:
            FoveateError: There is no such size, or a field has an impossible value.
        """
        if size not in SIZES:
            raise FoveateError(f"there is no STViT of size {size!r}; possible are {', '.join(SIZES)}.")
        names = ("hidden_sizes", "depths", "num_heads", "layer_scale")
        values: dict[str, Any] = {name: list(value) for name, value in zip(names, SIZES[size], strict=True)}
        return cls(**values | fields)

    def check(self) -> None:
        """See `EncoderConfig.check`."""
        super().check()
        stages = len(self.depths)
        for name in ("num_heads", "cell_sizes"):
            self.positive_list(name)
        for name in ("num_heads", "cell_sizes", "layer_scale"):
            values = getattr(self, name)
            if not isinstance(values, (list, tuple)) or len(values) != stages:
                raise FoveateError(f"{name} of stvit must be a list of {stages} values, one per stage, not {values!r}.")
        self.layer_scale = [bool(value) for value in self.layer_scale]
        for name in ("num_iterations", "projection_size"):
            self.positive(name)
        for width, heads in zip(self.hidden_sizes, self.num_heads, strict=True):
            if width % heads:
                raise FoveateError(f"the {heads} heads of a stage of stvit do not divide its width {width}.")
        if self.hidden_sizes[0] % 2:
            raise FoveateError(f"the stem of stvit needs an even first width, not {self.hidden_sizes[0]}.")
        if self.border not in BORDERS:
            raise FoveateError(f"border of stvit must be {' or '.join(BORDERS)}, not {self.border!r}.")
        if not self.mlp_ratio * min(self.hidden_sizes) >= 1:
            raise FoveateError(f"mlp_ratio of stvit leaves no hidden width: {self.mlp_ratio}.")
        if self.patch_size != STRIDE:
            raise FoveateError(
                f"patch_size of stvit must be {STRIDE}, as its stem has this stride, not {self.patch_size}."
            )

    def reduced(self, patches: Grid) -> Grid:
        """See `EncoderConfig.reduced`; every stage but the first halves rows and columns and rounds up."""
        factor = 2 ** (len(self.depths) - 1)
        return Grid(-(-patches.rows // factor), -(-patches.columns // factor))
