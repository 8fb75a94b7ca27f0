"""QueCC: queries that know the question attend to the features of their own region."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import initialization as init

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.connectors.connector import whole_number
from foveate.models.connectors.cross_attention import PARTS
from foveate.models.connectors.mlp import MLP, MLPOptions
from foveate.models.connectors.pixel_unshuffle import squares
from foveate.models.connectors.tokenpacker import (
    PAPER_LAYERS,
    ReadsSquares,
    SquareAttention,
    TwoLayers,
    check_layers,
)

#: Names of the two layers and the norm of queries, keys and values in the authors' code.
_NAMES = {"q": "query", "k": "key", "v": "value"}


@dataclass(frozen=True)
class QueCCOptions(MLPOptions):
    """Options of `QueCC`.

    Args:
        scale: Patches per token in each direction; on 24 x 24 patches 4, 6, 12 and 24 give 36, 16, 4 and 1 tokens.
        num_heads: Attention heads; they divide the width of the features.
        layers: Hidden states of the encoder for keys and values, the embeddings being 0; negative ones count from the
            end. None: those at the depths of the paper, 12, 16, 22 and 23 of 24.
        query_layer: Hidden state for the queries.
    """

    scale: int = 4
    num_heads: int = 8
    layers: tuple[int, ...] | None = None
    query_layer: int = -2

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_number("scale", self.scale)
        whole_number("num_heads", self.num_heads)
        check_layers(self.layers, self.query_layer)


class QueCC(ReadsSquares, MLP[QueCCOptions]):
    """Makes one token of every scale x scale square: a query that knows the question attends to the square's features.

        x' = x + LN(W_t t)                       x (R, C, D); t (d,), the question
        q  = conv(LN(MLP_q(x')))                 depthwise, kernel = stride = scale: (R/s, C/s, D)
        k  = LN(MLP_k(y)),  v = LN(MLP_v(y))     y (R, C, 4 D), four layers of the encoder, MLP 4 D -> D -> D with GELU
        token = MLP(W_o MHA(q, k, v of its own square))     the two-layer connector of LLaVA; no residual connection

    Inference Optimal VLMs Need Only One Visual Token but Larger Models (Li et al., arXiv 2411.03312), with 8 heads and
    the hidden states 12, 16, 22 and 23 of CLIP-L. t is the last hidden state of the language model for the last token
    of the question, in a pass of the text alone, without gradient. Layer norms have eps 1e-6.

    The authors' code cuts the question out of the decoded prompt, between its first line break and "ASSISTANT", and
    fixes widths and grid. Here the question is all text of the prompt before its answer
    (`foveate.models.connectors.prompts`), and sizes follow the models.
    """

    name: ClassVar[str] = "quecc"
    title: ClassVar[str] = "Inference Optimal VLMs Need Only One Visual Token but Larger Models"
    paper: ClassVar[str] = "arXiv 2411.03312"
    reads_text: ClassVar[bool] = True
    options_class: ClassVar = QueCCOptions
    released_types: ClassVar[tuple[str, ...]] = ("mlp2x_gelu",)
    released_keys: ClassVar[Mapping[str, str | tuple[str, ...]]] = {
        **{
            rf"0\.{short}_proj\.{place}\.": f"{name}{layer}."
            for short, name in _NAMES.items()
            for place, layer in ((0, ".linear_1"), (2, ".linear_2"), (3, "_norm"))
        },
        r"0\.q_downsample\.": "downsample.",
        r"0\.text_projection\.0\.": "text.",
        r"0\.text_projection\.1\.": "text_norm.",
        **{rf"0\.clip_attn\.in_proj_{part}": tuple(f"attention.{x}_proj.{part}" for x in "qkv") for part in PARTS},
        r"0\.clip_attn\.out_proj\.": "attention.out_proj.",
        r"1\.": "linear_1.",
        r"3\.": "linear_2.",
    }

    def __init__(self, vision_hidden_size: int, text_hidden_size: int, **options: Any) -> None:
        super().__init__(vision_hidden_size, text_hidden_size, **options)
        width, heads, scale = vision_hidden_size, self.options.num_heads, self.options.scale
        if width % heads:
            raise FoveateError(f"the {heads} heads of quecc do not divide the width {width} of the features.")
        levels = len(self.options.layers or PAPER_LAYERS)
        self.text = nn.Linear(text_hidden_size, width)
        self.text_norm = nn.LayerNorm(width, eps=1e-6)
        self.query = TwoLayers(width, width)
        self.key = TwoLayers(levels * width, width)
        self.value = TwoLayers(levels * width, width)
        self.query_norm = nn.LayerNorm(width, eps=1e-6)
        self.key_norm = nn.LayerNorm(width, eps=1e-6)
        self.value_norm = nn.LayerNorm(width, eps=1e-6)
        self.downsample = nn.Conv2d(width, width, scale, stride=scale, groups=width)
        self.attention = SquareAttention(width, heads)

    @classmethod
    def released_options(cls, config: Mapping[str, Any]) -> dict[str, Any] | None:
        """See `Connector.released_options`.

        Raises:
            FoveateError: Squares overlap or leave patches out.
        """
        if config.get("mm_vision_token_compression_type") != "quecc":
            return None
        scale = config.get("mm_vision_token_compression_kernel_size", 4)
        stride = config.get("mm_vision_token_compression_stride", 4)
        if scale != stride:
            raise FoveateError(
                f"squares of {scale} patches in steps of {stride} are not supported by the connector quecc: "
                "mm_vision_token_compression_kernel_size and mm_vision_token_compression_stride must be equal."
            )
        return {"scale": scale, "query_layer": config.get("mm_vision_select_layer", -2)}

    def connect(self, features: Tensor, grid: Grid, output: Grid, text: Tensor | None) -> Tensor:
        """See `Connector.connect`; of several states of the prompt the last one is read."""
        assert text is not None  # `forward` has checked it
        multi, single = features[:, :, :-1].flatten(2), features[:, :, -1]
        question = self.text_norm(self.text(text[:, -1:].to(features.dtype)))
        queries = self.query_norm(self.query(single + question))
        raster = self.downsample(queries.unflatten(1, grid).permute(0, 3, 1, 2))
        query = raster.flatten(2).transpose(1, 2)
        key, value = self.key_norm(self.key(multi)), self.value_norm(self.value(multi))
        scale = self.options.scale
        return self.project(self.attention(query, squares(key, grid, scale), squares(value, grid, scale)))

    def reset_parameters(self) -> None:
        """Initialize the convolution as torch does.

        Queries have no norm after it, and weights as small as those of a language model would make attention uniform.
        """
        init.kaiming_uniform_(self.downsample.weight, a=math.sqrt(5))
