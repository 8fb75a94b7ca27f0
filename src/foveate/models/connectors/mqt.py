"""MQT: learned queries that attend to the features of an image, of which any prefix can be used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import initialization as init

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.connectors.connector import Connector, ConnectorOptions, whole_number
from foveate.models.connectors.cross_attention import PARTS, CrossAttention
from foveate.models.connectors.positions import grid_positions, resized_positions


@dataclass(frozen=True)
class MQTOptions(ConnectorOptions):
    """Options of `MQT`.

    Args:
        num_queries: Learned queries, the greatest number of tokens; a square number.
        num_heads: Attention heads; they divide the width of the features.
        features_in_keys: Add the features to the keys, so that the weights of the attention depend on the image. The
            authors' code does not.
        tokens: Tokens of an image where no budget is given; None: one per query.
    """

    num_queries: int = 256
    num_heads: int = 16
    features_in_keys: bool = False
    tokens: int | None = None

    def __post_init__(self) -> None:
        whole_number("num_queries", self.num_queries)
        whole_number("num_heads", self.num_heads)
        if math.isqrt(self.num_queries) ** 2 != self.num_queries:
            raise FoveateError(
                f"num_queries must be a square number, because the positions of queries are a square grid, not "
                f"{self.num_queries}."
            )
        if not isinstance(self.features_in_keys, bool):
            raise FoveateError(f"features_in_keys must be true or false, not {self.features_in_keys!r}.")
        if self.tokens is not None:
            whole_number("tokens", self.tokens)
            if self.tokens > self.num_queries:
                raise FoveateError(f"tokens must be at most the {self.num_queries} queries, not {self.tokens}.")


class MQT(Connector[MQTOptions]):
    """Lets the first m of 256 learned queries attend to the features: their outputs are the tokens.

        q = LN(query_i + p_i)                  i < m; p: sines and cosines of a 16 x 16 grid, row-major
        k = LN(p'),  v = LN(x)                 p': p resized to the grid of the features x (N, D), bicubic
        token_i = W_o MHA(q, k, v) P           16 heads of width D; P is (D, d); no residual connection, no MLP

    Matryoshka Query Transformer (Hu et al., arXiv 2405.19315): the first training stage uses all 256 queries, the
    second draws m from 2, 4, ..., 256 in every step, and any m from 1 to 256 can be chosen at inference. Query i is the
    same for every m, so that m tokens are the first m of 256. They stand for no part of the image: m tokens are a grid
    of 1 x m.

    In the authors' code, image features are in the values alone. The weights of the attention are therefore equal for
    all images, and every query is a learned weighting of places. `features_in_keys` adds the features to the positions
    before the layer norm of the keys; this form is ours, and no released weights are trained with it.

    Positions are resized to the grid as the authors' function does, which their model calls for 24 x 24 features alone.
    On another grid, a query weights places at about the same share of the image's height and width; released weights
    are not trained there. The authors store positions in half precision, here they have the precision of the weights.
    Layer norms have eps 1e-6.

    A released `config.json` may hold "second_stage" as its number of tokens, with which the authors' code draws a
    random number at inference where none is given; here it is 256 then.
    """

    name: ClassVar[str] = "mqt"
    title: ClassVar[str] = "Matryoshka Query Transformer for Large Vision-Language Models"
    paper: ClassVar[str] = "arXiv 2405.19315"
    nested: ClassVar[bool] = True
    spatial: ClassVar[bool] = False
    length_schedule: ClassVar[Literal["all", "sampled"] | None] = "sampled"
    options_class: ClassVar = MQTOptions
    released_types: ClassVar[tuple[str, ...]] = ("matry_query",)
    released_prefix: ClassVar[str] = "query_abstractor"
    released_keys: ClassVar[Mapping[str, str | tuple[str, ...]]] = {
        r"pos_embed": "positions",
        r"query": "queries",
        r"ln_q\.": "query_norm.",
        r"ln_k\.": "key_norm.",
        r"ln_v\.": "value_norm.",
        **{rf"attn\.in_proj_{part}": tuple(f"attention.{x}_proj.{part}" for x in "qkv") for part in PARTS},
        r"attn\.out_proj\.": "attention.out_proj.",
        r"proj": "projection",
    }

    positions: Tensor

    def __init__(self, vision_hidden_size: int, text_hidden_size: int, **options: Any) -> None:
        super().__init__(vision_hidden_size, text_hidden_size, **options)
        width, count = vision_hidden_size, self.options.num_queries
        if width % self.options.num_heads or width % 4:
            raise FoveateError(
                f"the width of the features must be a multiple of 4 and of the {self.options.num_heads} heads of mqt, "
                f"not {width}."
            )
        self.register_buffer("positions", torch.empty(count, width))
        self.queries = nn.Parameter(torch.empty(count, width))
        self.query_norm = nn.LayerNorm(width, eps=1e-6)
        self.key_norm = nn.LayerNorm(width, eps=1e-6)
        self.value_norm = nn.LayerNorm(width, eps=1e-6)
        self.attention = CrossAttention(width, self.options.num_heads)
        self.projection = nn.Parameter(torch.empty(width, text_hidden_size))
        self.reset_parameters()

    @classmethod
    def released_options(cls, config: Mapping[str, Any]) -> dict[str, Any] | None:
        """See `Connector.released_options`; names of training stages in place of a number mean all tokens."""
        tokens = str(config.get("num_visual_tokens", ""))
        return {"tokens": int(tokens)} if tokens.isdecimal() else {}

    def reset_parameters(self) -> None:
        """See `Connector.reset_parameters`."""
        side, (width, outputs) = math.isqrt(self.options.num_queries), self.projection.shape
        init.copy_(self.positions, grid_positions(Grid(side, side), width))
        init.trunc_normal_(self.queries, std=0.02)
        init.normal_(self.projection, std=outputs**-0.5)

    def reduced(self, grid: Grid, budget: int | None) -> Grid:
        """See `Connector.reduced`: one row.

        Raises:
            FoveateError: There are not so many queries.
        """
        count = self.options.num_queries
        wanted = (self.options.tokens or count) if budget is None else budget
        if not 1 <= wanted <= count:
            raise FoveateError(f"the connector mqt cannot make {wanted} tokens; possible are 1 to {count}.")
        return Grid(1, wanted)

    def training_lengths(self, grid: Grid) -> tuple[int, ...]:
        """See `Connector.training_lengths`: those of the second stage."""
        count = self.options.num_queries
        return (*range(2, count, 2), count)

    def connect(self, features: Tensor, grid: Grid, output: Grid, text: Tensor | None) -> Tensor:
        """See `Connector.connect`."""
        count = output.size
        queries = self.query_norm(self.queries[:count] + self.positions[:count])
        keys = resized_positions(self.positions, grid)
        if self.options.features_in_keys:
            keys = features + keys
        keys = self.key_norm(keys).view(-1, *features.shape[1:])
        mixed = self.attention(queries[None], keys, self.value_norm(features))
        return mixed @ self.projection
