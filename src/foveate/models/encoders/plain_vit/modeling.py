"""A plain vision transformer for patches from 16 pixels down to single pixels."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from foveate.core.tokens import Grid
from foveate.models.encoders.encoder import Encoder, EncoderOutput
from foveate.models.encoders.layers import Block, LearnedTokens, Positions, flatten
from foveate.models.encoders.plain_vit.configuration import PlainViTConfig


class PlainViTModel(Encoder):
    """The vision transformer (Dosovitskiy et al., arXiv 2010.11929), trained at patches of 16, 8, 4, 2 and 1 pixels.

    Scaling Laws in Patchification (Wang et al., arXiv 2502.03738) keeps the model and makes the patches smaller: 224 x
    224 pixels are 196 tokens at 16 and 50,176 at 1. SDPA keeps memory linear in them; operations are quadratic, and
    [`AdventurerModel`] is the encoder of the study whose operations are linear.

    The output is that of `ViTModel` of transformers with the same weights, which `convert_vit_state` reads. The
    position of [CLS] is part of its weight. Positions are resized bicubically for other grids, and `with_patch_size`
    gives a trained encoder other patches.
    """

    config_class = PlainViTConfig
    _no_split_modules = ["Block"]
    title: ClassVar[str] = "Scaling Laws in Patchification: An Image Is Worth 50,176 Tokens And More"
    paper: ClassVar[str] = "arXiv 2502.03738"

    def __init__(self, config: PlainViTConfig) -> None:
        super().__init__(config)
        width, eps, side = config.hidden_size, config.layer_norm_eps, config.image_size // config.patch_size
        self.patches = nn.Conv2d(config.num_channels, width, config.patch_size, config.patch_size)
        self.cls_token = LearnedTokens(1, width)
        self.positions = Positions(Grid(side, side), width, mode="bicubic")
        self.blocks = nn.ModuleList(
            Block(config, width, config.num_attention_heads, config.intermediate_size, eps)
            for _ in range(config.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(width, eps=eps)
        self.post_init()

    def encode(self, pixel_values: Tensor, grid: Grid, hidden_states: list[Tensor] | None) -> EncoderOutput:
        """See `Encoder.encode`."""
        tokens = flatten(self.patches(pixel_values) + self.positions(grid))
        x = torch.cat([self.cls_token(len(tokens)), tokens], dim=1)
        if hidden_states is not None:
            hidden_states.append(tokens)
        for block in self.blocks:
            x = block(x)
            if hidden_states is not None:
                hidden_states.append(x[:, 1:])
        x = self.norm(x)
        return EncoderOutput(last_hidden_state=x[:, 1:], prefix_tokens=x[:, :1])
