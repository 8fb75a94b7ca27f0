"""M3: nested average pooling after the two-layer connector."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.connectors.connector import whole_number
from foveate.models.connectors.mlp import MLP, MLPOptions

#: Sides of the squares that training averages over, besides that of the whole image.
TRAINED_SIDES = (1, 2, 4, 8)


@dataclass(frozen=True)
class M3Options(MLPOptions):
    """Options of `M3`.

    Args:
        tokens: Tokens of an image where no budget is given; None: one per patch.
    """

    tokens: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokens is not None:
            whole_number("tokens", self.tokens)


class M3(MLP[M3Options]):
    """Maps every feature by the two-layer connector and averages the tokens over k x k squares.

    Matryoshka Multimodal Models (Cai et al., arXiv 2405.17430): on the 24 x 24 patches of CLIP-L/336, k = 24, 8, 4, 2
    and 1 give 1, 9, 36, 144 and 576 tokens. Each k divides the next, so that coarse tokens are means of finer ones. The
    same holds for every k that divides rows and columns of a grid, and all of these are allowed here; the released
    weights are trained on the five above.

    Training averages the losses of all lengths in every batch: of the five above, and on other grids of k = 1, 2, 4 and
    8, where they divide it, and of the largest square that does.

    The authors' code truncates sqrt(N / tokens), so that other requests silently give another number of tokens; here
    they raise an error.
    """

    name: ClassVar[str] = "m3"
    title: ClassVar[str] = "Matryoshka Multimodal Models"
    paper: ClassVar[str] = "arXiv 2405.17430"
    nested: ClassVar[bool] = True
    length_schedule: ClassVar[Literal["all", "sampled"] | None] = "all"
    options_class: ClassVar = M3Options
    released_types: ClassVar[tuple[str, ...]] = ("mlp2x_gelu",)

    @classmethod
    def released_options(cls, config: Mapping[str, Any]) -> dict[str, Any] | None:
        """See `Connector.released_options`: the lengths are a list in training, and may be one number for inference."""
        if "matryoshka_vis_token_scale" not in config:
            return None
        scale = config["matryoshka_vis_token_scale"]
        return {"tokens": scale} if isinstance(scale, int) else {}

    def reduced(self, grid: Grid, budget: int | None) -> Grid:
        """See `Connector.reduced`.

        Raises:
            FoveateError: No square of patches that divides the grid gives so many tokens.
        """
        wanted = self.options.tokens if budget is None else budget
        if wanted is None:
            return grid
        return pooled_grid(grid, wanted)

    def training_lengths(self, grid: Grid) -> tuple[int, ...]:
        """See `Connector.training_lengths`."""
        common = math.gcd(*grid)
        sides = {side for side in TRAINED_SIDES if common % side == 0} | {common}
        return tuple(grid.size // side**2 for side in sorted(sides, reverse=True))

    def connect(self, features: Tensor, grid: Grid, output: Grid, text: Tensor | None) -> Tensor:
        """See `Connector.connect`."""
        tokens = self.project(features)
        if output == grid:
            return tokens
        raster = tokens.unflatten(1, grid).permute(0, 3, 1, 2)
        return F.avg_pool2d(raster, grid.rows // output.rows).flatten(2).transpose(1, 2)


def pooled_grids(grid: Grid) -> list[Grid]:
    """Grids that average pooling over equal squares can give, the smallest first."""
    common = math.gcd(*grid)
    sides = [side for side in range(common, 0, -1) if common % side == 0]
    return [Grid(grid.rows // side, grid.columns // side) for side in sides]


def pooled_grid(grid: Grid, tokens: int) -> Grid:
    """The grid of `tokens` cells that average pooling over equal squares gives.

    Raises:
        FoveateError: There is none; the message names the possible numbers.
    """
    possible = {pooled.size: pooled for pooled in pooled_grids(grid)}
    if tokens not in possible:
        raise FoveateError(
            f"average pooling over squares cannot make {tokens} tokens of {grid.rows} x {grid.columns} patches; "
            f"possible are {', '.join(map(str, possible))}."
        )
    return possible[tokens]
