"""TokenPacker: every token attends to the features of its own region, of several layers of the encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.connectors.connector import Connector, ConnectorOptions, whole_number
from foveate.models.connectors.cross_attention import PARTS, CrossAttention
from foveate.models.connectors.pixel_unshuffle import squares

#: Hidden states of the 24 blocks of CLIP-L that keys and values are made of.
PAPER_LAYERS, PAPER_DEPTH = (12, 16, 22, 23), 24


@dataclass(frozen=True)
class TokenPackerOptions(ConnectorOptions):
    """Options of `TokenPacker`.

    Args:
        scale: Patches per token in each direction; the paper has 2, 3 and 4.
        num_heads: Attention heads; they divide the width of the features.
        layers: Hidden states of the encoder for keys and values, the embeddings being 0; negative ones count from the
            end. None: those at the depths of the paper, 12, 16, 22 and 23 of 24.
        query_layer: Hidden state for the queries.
    """

    scale: int = 2
    num_heads: int = 8
    layers: tuple[int, ...] | None = None
    query_layer: int = -2

    def __post_init__(self) -> None:
        whole_number("scale", self.scale)
        whole_number("num_heads", self.num_heads)
        check_layers(self.layers, self.query_layer)


class ReadsSquares:
    """Sizes of a connector that makes one token of every scale x scale square, from several layers of the encoder."""

    options: Any

    @property
    def multiple(self) -> int:
        """See `Connector.multiple`."""
        return self.options.scale

    def feature_layers(self, num_layers: int) -> tuple[int, ...]:
        """The layers of keys and values, then the one of queries."""
        return (*(self.options.layers or paper_layers(num_layers)), self.options.query_layer)

    def reduced(self, grid: Grid, budget: int | None) -> Grid:
        """See `Connector.reduced`."""
        return Grid(grid.rows // self.options.scale, grid.columns // self.options.scale)


class TokenPacker(ReadsSquares, Connector[TokenPackerOptions]):
    """Makes one token of every scale x scale square: a downsampled query attends to the square's features.

        q = LN(W_q resize(x))                  x (R, C, D) -> q (R/s, C/s, D), bilinear, no bias
        k = LN(MLP_k(y)),  v = LN(MLP_v(y))    y (R, C, 4 D), four layers of the encoder, MLP 4 D -> D -> D with GELU
        token = MLP(W_o MHA(q, k, v of its own square))        MLP D -> d -> d with GELU; no residual connection

    TokenPacker: Efficient Visual Projector for Multimodal LLM (Li et al., arXiv 2407.02392), with 8 heads and the
    hidden states 12, 16, 22 and 23 of CLIP-L; queries come from the penultimate one. Queries act through attention
    weights alone: where all values of a square are equal, the token does not depend on its query. Layer norms have eps
    1e-6.

    The authors' code fixes the width of the encoder to 1024 and the grid to 24 x 24; here both follow the encoder.
    """

    name: ClassVar[str] = "tokenpacker"
    title: ClassVar[str] = "TokenPacker: Efficient Visual Projector for Multimodal LLM"
    paper: ClassVar[str] = "arXiv 2407.02392"
    options_class: ClassVar = TokenPackerOptions
    released_types: ClassVar[tuple[str, ...]] = ("tokenpacker",)
    released_keys: ClassVar[Mapping[str, str | tuple[str, ...]]] = {
        r"q_proj_1\.": "query.",
        r"k_proj_1\.0\.": "key.linear_1.",
        r"k_proj_1\.2\.": "key.linear_2.",
        r"v_proj_1\.0\.": "value.linear_1.",
        r"v_proj_1\.2\.": "value.linear_2.",
        r"ln_q_1\.": "query_norm.",
        r"ln_k_1\.": "key_norm.",
        r"ln_v_1\.": "value_norm.",
        **{rf"clip_attn\.in_proj_{part}": tuple(f"attention.{x}_proj.{part}" for x in "qkv") for part in PARTS},
        r"clip_attn\.out_proj\.": "attention.out_proj.",
        r"mlp\.0\.": "output.linear_1.",
        r"mlp\.2\.": "output.linear_2.",
    }

    def __init__(self, vision_hidden_size: int, text_hidden_size: int, **options: Any) -> None:
        super().__init__(vision_hidden_size, text_hidden_size, **options)
        width, heads = vision_hidden_size, self.options.num_heads
        if width % heads:
            raise FoveateError(f"the {heads} heads of tokenpacker do not divide the width {width} of the features.")
        levels = len(self.options.layers or PAPER_LAYERS)
        self.query = nn.Linear(width, width, bias=False)
        self.key = TwoLayers(levels * width, width)
        self.value = TwoLayers(levels * width, width)
        self.query_norm = nn.LayerNorm(width, eps=1e-6)
        self.key_norm = nn.LayerNorm(width, eps=1e-6)
        self.value_norm = nn.LayerNorm(width, eps=1e-6)
        self.attention = SquareAttention(width, heads)
        self.output = TwoLayers(width, text_hidden_size)

    @classmethod
    def released_options(cls, config: Mapping[str, Any]) -> dict[str, Any] | None:
        """See `Connector.released_options`."""
        return {"scale": config.get("scale_factor", 2), "query_layer": config.get("mm_vision_select_layer", -2)}

    def connect(self, features: Tensor, grid: Grid, output: Grid, text: Tensor | None) -> Tensor:
        """See `Connector.connect`."""
        multi, single = features[:, :, :-1].flatten(2), features[:, :, -1]
        query = self.query_norm(self.query(downsample(single, grid, output)))
        key, value = self.key_norm(self.key(multi)), self.value_norm(self.value(multi))
        scale = self.options.scale
        return self.output(self.attention(query, squares(key, grid, scale), squares(value, grid, scale)))


class SquareAttention(CrossAttention):
    """Multi-head attention of every query to the keys and values of its own square; see `CrossAttention`."""

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Map queries `(B, n, D)`, with keys and values `(B, n, s^2, D)`, to `(B, n, D)`."""
        mixed = super().forward(queries.flatten(0, 1).unsqueeze(1), keys.flatten(0, 1), values.flatten(0, 1))
        return mixed.view(queries.shape)


class TwoLayers(nn.Module):
    """`linear_2(gelu(linear_1(x)))`."""

    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(input_size, output_size)
        self.linear_2 = nn.Linear(output_size, output_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(..., input size)` to `(..., output size)`."""
        return self.linear_2(F.gelu(self.linear_1(x)))


def check_layers(layers: tuple[int, ...] | None, query_layer: int) -> None:
    """Check options that name hidden states of the encoder.

    Raises:
        FoveateError: They are no indices.
    """
    chosen = (0,) if layers is None else layers
    if not isinstance(chosen, tuple) or not chosen or not all(type(n) is int for n in (*chosen, query_layer)):
        raise FoveateError(
            f"layers and query_layer must be indices of hidden states, not {layers!r} and {query_layer!r}."
        )


def paper_layers(num_layers: int) -> tuple[int, ...]:
    """The layers of the paper, 12, 16, 22 and 23 of 24, in a tower of another depth."""
    share = (num_layers - 1) / (PAPER_DEPTH - 1)
    return tuple(round(layer * share) for layer in PAPER_LAYERS)


def downsample(features: Tensor, grid: Grid, output: Grid) -> Tensor:
    """Resize features `(B, N, D)` bilinearly to a smaller grid `(B, n, D)`, without antialiasing, in float32."""
    raster = features.unflatten(1, grid).permute(0, 3, 1, 2).float()
    small = F.interpolate(raster, output, mode="bilinear", align_corners=False)
    return small.flatten(2).transpose(1, 2).to(features.dtype)
