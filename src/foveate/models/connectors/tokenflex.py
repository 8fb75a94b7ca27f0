"""TokenFLEX: adaptive pooling to any square number of tokens, then a gated projector."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.connectors.connector import Connector, ConnectorOptions, whole_number

POOLINGS = ("adaptive", "resized")


@dataclass(frozen=True)
class TokenFLEXOptions(ConnectorOptions):
    """Options of `TokenFLEX`; numbers of tokens are square numbers.

    Args:
        tokens: Tokens of an image where no budget is given.
        lengths: Numbers of tokens that training draws from, in ascending order.
        pooling: How n x n tokens are made where n does not divide the grid: "adaptive" averages over bins that overlap;
            "resized" first enlarges the grid to the next multiple of n, bilinear with aligned corners, as the authors'
            code of Ristretto-3B does.
        expansion: Width of the gated layer, in widths of the features.
    """

    tokens: int = 256
    lengths: tuple[int, ...] = (64, 144, 256)
    pooling: str = "adaptive"
    expansion: int = 3

    def __post_init__(self) -> None:
        whole_number("expansion", self.expansion)
        if not isinstance(self.lengths, tuple) or not self.lengths:
            raise FoveateError(f"lengths must be a list of numbers of tokens, not {self.lengths!r}.")
        for name, count in (("tokens", self.tokens), *(("each of lengths", count) for count in self.lengths)):
            whole_number(name, count)
            if math.isqrt(count) ** 2 != count:
                raise FoveateError(f"{name} must be a square number, not {count}.")
        if list(self.lengths) != sorted(set(self.lengths)):
            raise FoveateError(f"lengths must be different numbers in ascending order, not {list(self.lengths)}.")
        if self.pooling not in POOLINGS:
            raise FoveateError(f"there is no pooling {self.pooling!r}; possible are {', '.join(POOLINGS)}.")


class TokenFLEX(Connector[TokenFLEXOptions]):
    """Averages the features to n x n, for any n up to the sides of the grid, and maps every mean by a SwiGLU block.

        y = LN(pool(x))                        x (R, C, D) -> y (n, n, D), adaptive average pooling
        token = W_down (SiLU(W_gate y) * W_up y)                D -> 3 D -> d, with biases

    TokenFLEX (Hu et al., arXiv 2504.03154): training draws 64, 144 or 256 tokens (n = 8, 12, 16) in every step, and
    any of them serves at inference. Adaptive pooling averages the rows floor(i R / n) to ceil((i + 1) R / n) for row i,
    and the columns likewise; where n divides the grid, these are equal squares.

    From the paper, of which the abstract was at hand, are the pooling, SwiGLU and the three lengths. The layer norm
    (eps 1e-5), the expansion by 3 and the biases are those of the projector in the authors' LiAutoAD/Ristretto-3B,
    which pools in another way (`pooling`); models in its layout are not read. Ours are: each length is equally likely
    in training, other n are allowed, images that are not square have n x n tokens too, and n above the sides of the
    grid is refused, where the authors' code would enlarge the grid.
    """

    name: ClassVar[str] = "tokenflex"
    title: ClassVar[str] = "TokenFLEX: Unified VLM Training for Flexible Visual Tokens Inference"
    paper: ClassVar[str] = "arXiv 2504.03154"
    nested: ClassVar[bool] = True
    length_schedule: ClassVar[Literal["all", "sampled"] | None] = "sampled"
    options_class: ClassVar = TokenFLEXOptions

    def __init__(self, vision_hidden_size: int, text_hidden_size: int, **options: Any) -> None:
        super().__init__(vision_hidden_size, text_hidden_size, **options)
        hidden = self.options.expansion * vision_hidden_size
        self.norm = nn.LayerNorm(vision_hidden_size)
        self.gate = nn.Linear(vision_hidden_size, hidden)
        self.up = nn.Linear(vision_hidden_size, hidden)
        self.down = nn.Linear(hidden, text_hidden_size)

    def reduced(self, grid: Grid, budget: int | None) -> Grid:
        """See `Connector.reduced`.

        Raises:
            FoveateError: The number of tokens is no square number, or n is above the sides of the grid.
        """
        wanted = self.options.tokens if budget is None else budget
        side = math.isqrt(max(wanted, 0))
        if side < 1 or side**2 != wanted or side > min(grid):
            raise FoveateError(
                f"the connector tokenflex cannot make {wanted} tokens of {grid.rows} x {grid.columns} patches; "
                f"possible are square numbers from 1 to {min(grid) ** 2}."
            )
        return Grid(side, side)

    def training_lengths(self, grid: Grid) -> tuple[int, ...]:
        """See `Connector.training_lengths`."""
        return tuple(count for count in self.options.lengths if count <= min(grid) ** 2)

    def connect(self, features: Tensor, grid: Grid, output: Grid, text: Tensor | None) -> Tensor:
        """See `Connector.connect`."""
        raster = features.unflatten(1, grid).permute(0, 3, 1, 2)
        if self.options.pooling == "resized":
            raster = enlarged(raster, output)
        pooled = self.norm(F.adaptive_avg_pool2d(raster, output).flatten(2).transpose(1, 2))
        return self.down(F.silu(self.gate(pooled)) * self.up(pooled))


def enlarged(raster: Tensor, output: Grid) -> Tensor:
    """Enlarge a raster `(B, D, R, C)` so that a smaller grid divides it, bilinear with aligned corners."""
    size = [-(-side // parts) * parts for side, parts in zip(raster.shape[-2:], output, strict=True)]
    if size == list(raster.shape[-2:]):
        return raster
    return F.interpolate(raster, size, mode="bilinear", align_corners=True)
