"""LLaVA-Mini: a few learned queries attend to all features of an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.connectors.connector import whole_number
from foveate.models.connectors.mlp import MLP, MLPOptions
from foveate.models.connectors.tokenpacker import PARTS


@dataclass(frozen=True)
class LlavaMiniOptions(MLPOptions):
    """Options of `LlavaMini`.

    Args:
        size: C of the C x C tokens of every image.
        num_heads: Attention heads; they divide the width of the features.
        prefusion_layers: Decoder layers in which the text of the prompt reads the image before the language model
            (`foveate.models.llava.prefusion`); 0: none, which LLaVA-UHD needs.
    """

    size: int = 1
    num_heads: int = 8
    prefusion_layers: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_number("size", self.size)
        whole_number("num_heads", self.num_heads)
        whole_number("prefusion_layers", self.prefusion_layers, 0)


class LlavaMini(MLP[LlavaMiniOptions]):
    """Makes C x C tokens of an image: learned queries attend to all of its features.

        q = LN(Q) + p_C        Q (C C, D) learned, p_C (C C, D) the sine and cosine table of a C x C grid
        k = LN(x) + p_RC       x (R C', D), p_RC the table of the queries, resized bicubically to the grid of x
        v = LN(x)
        token = MLP(W_o MHA(q, k, v))     the two-layer connector of LLaVA; no residual connection

    LLaVA-Mini: Efficient Image and Video Large Multimodal Models with One Vision Token (Zhang et al., arXiv
    2501.03895), with C = 1 in the release, 8 heads and no MLP of its own. With C = 1 positions are the same everywhere
    and cancel out in the attention. The paper needs the pre-fusion as well, which the model adds: text reads the
    features of all patches, mapped by the same two layers, before they are dropped.

    The authors' checkpoints hold the table, which is computed here.
    """

    name: ClassVar[str] = "llava_mini"
    title: ClassVar[str] = "LLaVA-Mini: Efficient Image and Video Large Multimodal Models with One Vision Token"
    paper: ClassVar[str] = "arXiv 2501.03895"
    spatial: ClassVar[bool] = False
    options_class: ClassVar = LlavaMiniOptions
    released_types: ClassVar[tuple[str, ...]] = ("mlp2x_gelu",)
    released_keys: ClassVar[Mapping[str, str | tuple[str, ...]]] = {
        **MLP.released_keys,
        r"^model\.compressor\.query": "queries",
        r"^model\.compressor\.ln_q\.": "query_norm.",
        r"^model\.compressor\.ln_kv\.": "feature_norm.",
        **{
            rf"^model\.compressor\.attn\.in_proj_{part}": tuple(f"attention.{x}_proj.{part}" for x in "qkv")
            for part in PARTS
        },
        r"^model\.compressor\.attn\.out_proj\.": "attention.out_proj.",
    }

    def __init__(self, vision_hidden_size: int, text_hidden_size: int, **options: Any) -> None:
        super().__init__(vision_hidden_size, text_hidden_size, **options)
        width, heads = vision_hidden_size, self.options.num_heads
        if width % heads or width % 4:
            raise FoveateError(
                f"the width {width} of the features must be a multiple of 4 and of the {heads} heads of llava_mini."
            )
        self.queries = nn.Parameter(0.02 * torch.randn(self.options.size**2, width))
        self.query_norm = nn.LayerNorm(width)
        self.feature_norm = nn.LayerNorm(width)
        self.attention = CrossAttention(width, heads)

    @classmethod
    def released_options(cls, config: Mapping[str, Any]) -> dict[str, Any] | None:
        """See `Connector.released_options`."""
        if "compressor_size" not in config:
            return None
        return {"size": config["compressor_size"], "prefusion_layers": config.get("prefusion_layer_num", 4)}

    @property
    def prefusion_layers(self) -> int:
        """See `Connector.prefusion_layers`."""
        return self.options.prefusion_layers

    def reduced(self, grid: Grid, budget: int | None) -> Grid:
        """See `Connector.reduced`."""
        return Grid(1, self.options.size**2)

    def connect(self, features: Tensor, grid: Grid, output: Grid, text: Tensor | None) -> Tensor:
        """See `Connector.connect`."""
        square = Grid(self.options.size, self.options.size)
        table = sine_table(square, features.shape[-1]).to(features.device)
        values = self.feature_norm(features)
        keys = values + resized(table, square, grid).to(values.dtype)
        query = self.query_norm(self.queries) + table.to(values.dtype)
        return self.project(self.attention(query.expand(len(features), -1, -1), keys, values))

    def reset_parameters(self) -> None:
        """Initialize the queries as the authors do."""
        init.normal_(self.queries, std=0.02)


class CrossAttention(nn.Module):
    """Multi-head attention of queries to keys and values of their own image.

    Args:
        width: `D` of all of them.
        num_heads: Heads, which divide the width.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Map queries `(B, n, D)`, with keys and values `(B, N, D)`, to `(B, n, D)`."""
        projected = (self.q_proj(query), self.k_proj(keys), self.v_proj(values))
        heads = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in projected)
        mixed = F.scaled_dot_product_attention(*heads)  # (B, heads, n, D / heads)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


def sine_table(grid: Grid, width: int) -> Tensor:
    """Positions `(rows * columns, width)`, row-major: a half for columns, then one for rows, each sines, then cosines.

    Frequencies are 10000^(-4 i / width) for i from 0 to width / 4 - 1, as in MAE.
    """
    frequencies = 10000 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    rows, columns = torch.meshgrid(torch.arange(grid.rows), torch.arange(grid.columns), indexing="ij")
    angles = [places.flatten()[:, None] * frequencies for places in (columns, rows)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=-1).float()


def resized(table: Tensor, grid: Grid, output: Grid) -> Tensor:
    """A table `(n, D)` of one grid, resized bicubically to another `(N, D)`."""
    if grid == output:
        return table
    raster = table.unflatten(0, grid).permute(2, 0, 1)[None]
    return F.interpolate(raster, output, mode="bicubic", align_corners=False)[0].flatten(1).T
