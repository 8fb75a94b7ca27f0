"""LLaVA-Mini: a few learned queries attend to all features of an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.connectors.connector import whole_number
from foveate.models.connectors.cross_attention import PARTS, CrossAttention
from foveate.models.connectors.mlp import MLP, MLPOptions
from foveate.models.connectors.positions import grid_positions, resized_positions


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
        table = grid_positions(square, features.shape[-1]).to(features.device)
        values = self.feature_norm(features)
        keys = values + resized_positions(table, grid).to(values.dtype)
        query = self.query_norm(self.queries) + table.to(values.dtype)
        return self.project(self.attention(query[None], keys, values))

    def reset_parameters(self) -> None:
        """Initialize the queries as the authors do."""
        init.normal_(self.queries, std=0.02)
