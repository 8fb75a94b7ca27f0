"""Layers that several encoders share."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from foveate.core.attention import eager_attention
from foveate.core.tokens import Grid, wide
from foveate.models.encoders.encoder import SelfInitialized


class Positions(SelfInitialized):
    """A learned table of absolute positions, resized to other grids.

    Args:
        grid: Rows and columns of the table.
        width: Its width D.
        mode: Interpolation, `"bilinear"` or `"bicubic"`.
    """

    def __init__(self, grid: Grid, width: int, mode: str = "bilinear") -> None:
        super().__init__()
        self.mode = mode
        self.weight = nn.Parameter(torch.zeros(1, width, *grid))

    def reset_parameters(self, std: float) -> None:
        """See `SelfInitialized.reset_parameters`."""
        init.normal_(self.weight, std=std)

    def forward(self, grid: Grid) -> Tensor:
        """The table `(1, D, rows, columns)` of a grid."""
        return resize(self.weight, grid, self.mode)


class LearnedTokens(SelfInitialized):
    """Tokens that every image gets, such as [CLS] and registers.

    Args:
        count: Number P of tokens.
        width: Their width D.
        std: Standard deviation of their first values; None: that of the encoder.
    """

    def __init__(self, count: int, width: int, std: float | None = None) -> None:
        super().__init__()
        self.std = std
        self.weight = nn.Parameter(torch.zeros(1, count, width))

    def reset_parameters(self, std: float) -> None:
        """See `SelfInitialized.reset_parameters`."""
        init.normal_(self.weight, std=std if self.std is None else self.std)

    def forward(self, batch: int) -> Tensor:
        """The tokens `(B, P, D)` of a batch."""
        return self.weight.expand(batch, -1, -1)


class Attention(nn.Module):
    """Multi-head self-attention by any attention function of `transformers`.

    Args:
        config: Of the encoder; it names the attention function.
        width: Width D of the tokens.
        num_heads: Heads, which divide the width.
        bias: Whether queries, keys and values have one; the output always has.
    """

    def __init__(self, config: Any, width: int, num_heads: int, bias: bool = True) -> None:
        super().__init__()
        self.config = config
        self.num_heads = num_heads
        self.is_causal = False
        self.q_proj = nn.Linear(width, width, bias=bias)
        self.k_proj = nn.Linear(width, width, bias=bias)
        self.v_proj = nn.Linear(width, width, bias=bias)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens `(B, N, D)` to `(B, N, D)`."""
        projected = (project(x) for project in (self.q_proj, self.k_proj, self.v_proj))
        heads = (split_heads(part, self.num_heads) for part in projected)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        scaling = (x.shape[-1] // self.num_heads) ** -0.5
        mixed, _ = attend(self, *heads, attention_mask=None, scaling=scaling, dropout=0.0, is_causal=False)
        return self.out_proj(mixed.reshape(x.shape))


class MLP(nn.Module):
    """`fc2(activation(fc1(x)))`.

    Args:
        width: Width D of the tokens.
        hidden: Width of the hidden layer.
        activation: A name of `transformers.activations.ACT2FN`.
        output: Width of the output; None: D.
    """

    def __init__(self, width: int, hidden: int, activation: str = "gelu", output: int | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.activation = ACT2FN[activation]
        self.fc2 = nn.Linear(hidden, width if output is None else output)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(..., D)` to `(..., output)`."""
        return self.fc2(self.activation(self.fc1(x)))


class Block(GradientCheckpointingLayer):
    """A pre-norm transformer block: self-attention, then an MLP.

    Args:
        config: Of the encoder.
        width: Width D of the tokens.
        num_heads: Heads of the attention.
        hidden: Width of the MLP's hidden layer.
        eps: Of the layer norms.
        bias: Whether queries, keys and values have one.
        residual_scale: What the outputs of attention and MLP are multiplied by before they are added.
    """

    def __init__(
        self,
        config: Any,
        width: int,
        num_heads: int,
        hidden: int,
        eps: float = 1e-6,
        bias: bool = True,
        residual_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.residual_scale = residual_scale
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attention = Attention(config, width, num_heads, bias)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens `(B, N, D)` to `(B, N, D)`."""
        x = x + self.residual_scale * self.attention(self.norm1(x))
        return x + self.residual_scale * self.mlp(self.norm2(x))


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Split the width: `(B, N, D)` to `(B, heads, N, D / heads)`."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def resize(raster: Tensor, grid: Grid, mode: str = "bilinear") -> Tensor:
    """Resize `(B, D, rows, columns)` in float32, by default bilinearly; the same tensor where the grid is the same."""
    if raster.shape[-2:] == grid:
        return raster
    return F.interpolate(wide(raster), grid, mode=mode, align_corners=False).to(raster.dtype)


def flatten(raster: Tensor) -> Tensor:
    """Make tokens `(B, rows * columns, D)`, row-major, of a raster `(B, D, rows, columns)`."""
    return raster.flatten(2).transpose(1, 2)


def square_table(positions: Tensor) -> Tensor:
    """Make a table `(1, D, side, side)` of a list of positions `(1, side * side, D)`, row-major."""
    return positions.transpose(1, 2).unflatten(2, (math.isqrt(positions.shape[1]), -1))
