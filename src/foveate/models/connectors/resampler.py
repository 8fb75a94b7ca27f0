"""Perceiver resampler of LLaVA-UHD: learned queries that attend to all features of an image or slice."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn
from transformers import initialization as init

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.connectors.connector import Connector, ConnectorOptions, whole_number
from foveate.models.connectors.cross_attention import CrossAttention
from foveate.models.connectors.positions import grid_positions, resized_positions

PARTS = ("weight", "bias")
#: Width of an attention head where their number is not an option.
HEAD_WIDTH = 128


@dataclass(frozen=True)
class ResamplerOptions(ConnectorOptions):
    """Options of `Resampler`.

    Args:
        num_queries: Learned queries, one per token; a square number.
        num_heads: Attention heads; they divide the width of the tokens. None: one per 128 of the width.
    """

    num_queries: int = 64
    num_heads: int | None = None

    def __post_init__(self) -> None:
        whole_number("num_queries", self.num_queries)
        if math.isqrt(self.num_queries) ** 2 != self.num_queries:
            raise FoveateError(
                f"num_queries must be a square number, because the positions of queries are a square grid, not "
                f"{self.num_queries}."
            )
        if self.num_heads is not None:
            whole_number("num_heads", self.num_heads)


R_co = TypeVar("R_co", bound=ResamplerOptions, covariant=True)


class QueryResampler(Connector[R_co], Generic[R_co]):
    """Base class of the resamplers of LLaVA-UHD: their layers, which have the same names in the authors' weights."""

    released_keys: ClassVar[Mapping[str, str | tuple[str, ...]]] = {
        r"pos_embed$": "positions",
        r"query$": "queries",
        r"kv_proj\.": "input.",
        r"ln_q\.": "query_norm.",
        r"ln_kv\.": "input_norm.",
        r"ln_post\.": "output_norm.",
        **{rf"attn\.in_proj_{part}": tuple(f"attention.{x}_proj.{part}" for x in "qkv") for part in PARTS},
        r"attn\.out_proj\.": "attention.out_proj.",
        r"proj$": "projection",
    }

    positions: Tensor
    attention: nn.Module

    def __init__(self, vision_hidden_size: int, text_hidden_size: int, **options: Any) -> None:
        super().__init__(vision_hidden_size, text_hidden_size, **options)
        width, count = text_hidden_size, self.options.num_queries
        heads = self.options.num_heads or max(width // HEAD_WIDTH, 1)
        if width % heads or width % 4:
            raise FoveateError(
                f"the width of the language model must be a multiple of 4 and of the {heads} heads of {self.name}, not "
                f"{width}."
            )
        self.register_buffer("positions", torch.empty(count, width))
        self.queries = nn.Parameter(torch.empty(count, width))
        same = vision_hidden_size == width
        self.input: nn.Module = nn.Identity() if same else nn.Linear(vision_hidden_size, width, bias=False)
        self.query_norm = nn.LayerNorm(width, eps=1e-6)
        self.input_norm = nn.LayerNorm(width, eps=1e-6)
        self.attention = self.build_attention(width, heads)
        self.output_norm = nn.LayerNorm(width, eps=1e-6)
        self.projection = nn.Parameter(torch.empty(width, width))
        self.reset_parameters()

    def build_attention(self, width: int, num_heads: int) -> nn.Module:
        """The attention of queries to keys and values."""
        return CrossAttention(width, num_heads)

    def reset_parameters(self) -> None:
        """See `Connector.reset_parameters`."""
        side = math.isqrt(self.options.num_queries)
        init.copy_(self.positions, grid_positions(Grid(side, side), len(self.projection)))
        init.trunc_normal_(self.queries, std=0.02)
        init.normal_(self.projection, std=len(self.projection) ** -0.5)

    def connect(self, features: Tensor, grid: Grid, output: Grid, text: Tensor | None) -> Tensor:
        """See `Connector.connect`."""
        values = self.input_norm(self.input(features))
        keys = values + resized_positions(self.positions, grid)
        queries = self.query_norm(self.queries) + self.positions
        return self.output_norm(self.attend(queries, keys, values, grid)) @ self.projection

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, grid: Grid) -> Tensor:
        """Let queries `(m, d)` attend to keys and values `(B, N, d)` of `grid`, row-major: `(B, m, d)`."""
        return self.attention(queries[None], keys, values)


class Resampler(QueryResampler[ResamplerOptions]):
    """Makes 64 tokens of an image or slice of any size: outputs of learned queries that attend to its features.

        v = LN(W x)                      x (N, D) of the encoder -> (N, d), no bias; no W where D = d
        k = v + p'                       p': p resized to the grid of the features, bicubic
        token_i = LN(W_o MHA(LN(query_i) + p_i, k, v)) P         p: sines and cosines of an 8 x 8 grid; P is (d, d)

    LLaVA-UHD: an LMM Perceiving Any Aspect Ratio and High-Resolution Images (Xu et al., arXiv 2403.11703), where slices
    and the whole image share one resampler (`foveate.models.llava.layouts`). Heads have a width of 128 in the authors'
    code; layer norms have eps 1e-6. Tokens stand for no part of the image: n tokens are a grid of 1 x n.
    """

    name: ClassVar[str] = "resampler"
    title: ClassVar[str] = "LLaVA-UHD: an LMM Perceiving Any Aspect Ratio and High-Resolution Images"
    paper: ClassVar[str] = "arXiv 2403.11703"
    spatial: ClassVar[bool] = False
    options_class: ClassVar = ResamplerOptions
    released_types: ClassVar[tuple[str, ...]] = ("resampler",)

    def reduced(self, grid: Grid, budget: int | None) -> Grid:
        """See `Connector.reduced`: one row."""
        return Grid(1, self.options.num_queries)
