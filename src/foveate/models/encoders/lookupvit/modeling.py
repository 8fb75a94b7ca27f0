"""LookupViT: few compressed tokens are processed by full blocks and exchange information with many lookup tokens."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from foveate.core.tokens import Grid
from foveate.models.encoders.encoder import Encoder, EncoderOutput
from foveate.models.encoders.layers import MLP, Block, Positions, flatten, resize, split_heads
from foveate.models.encoders.lookupvit.configuration import LookupViTConfig


class LookupViTModel(Encoder):
    """Vision transformer with two sets of tokens: N lookup tokens, one per patch, and M = m x m compressed tokens.

        Z = patches + positions                         (N, D), lookup tokens
        C = resize(Z, m x m)                            (M, D), compressed tokens, bilinear in two dimensions
        every block:
        A = softmax(Q(LN C) K(LN Z)^T / sqrt(d))        (heads, M, N)
        C = C + O(A V(LN Z))                            gather
        C = block(C)                                    self-attention and the full MLP
        Z = Z + O'(A^T V'(LN C))                        scatter: the same map, no new queries and keys
        Z = Z + light MLP(LN Z)

    LookupViT: Compressing visual information to a limited number of tokens (Koner et al., arXiv 2407.12753). Only the
    light MLP and the projections run on all N tokens, and no attention has N x N weights, so that the cost is linear in
    N. The map A has M x N weights per head; scatter reads it, which is why it is computed and not left to SDPA.
    Resizing patches and positions together equals resizing each, as the resize is linear.

    The authors published no code, and these points are choices of this implementation: A^T is not normalized over the
    compressed tokens (`normalize_scatter` does); the light MLP has half the width of a token as its hidden layer; there
    is no [CLS] token, as heads can pool the compressed tokens; where these are the output, the last block has no
    scatter and no light MLP, because nothing would read the result.

    One model serves several m: `training_sides` are drawn per training step from the random state of torch, and
    `num_compressed` of `forward` chooses M = m x m for a call, at inference or in training.
    """

    config_class = LookupViTConfig
    _no_split_modules = ["LookupViTBlock"]
    title: ClassVar[str] = "LookupViT: Compressing visual information to a limited number of tokens"
    paper: ClassVar[str] = "arXiv 2407.12753"

    def __init__(self, config: LookupViTConfig) -> None:
        super().__init__(config)
        side = config.image_size // config.patch_size
        self.patches = nn.Conv2d(config.num_channels, config.hidden_size, config.patch_size, config.patch_size)
        self.positions = Positions(Grid(side, side), config.hidden_size)
        blocks, lookup = config.num_hidden_layers, config.output == "lookup"
        self.blocks = nn.ModuleList(LookupViTBlock(config, lookup or i + 1 < blocks) for i in range(blocks))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def encode(
        self,
        pixel_values: Tensor,
        grid: Grid,
        hidden_states: list[Tensor] | None,
        num_compressed: int | None = None,
    ) -> EncoderOutput:
        """See `Encoder.encode`.

        Args:
            num_compressed: M, a square number; None: one of `training_sides` in training, else `compressed_side`.

        Raises:
            FoveateError: `num_compressed` is no square, or more than the patches allow.
        """
        raster = self.patches(pixel_values)
        patches = Grid(*raster.shape[-2:])
        if num_compressed is None and self.training and self.config.training_sides:
            sides = self.config.training_sides
            num_compressed = sides[int(torch.randint(len(sides), ()))] ** 2
        raster = raster + self.positions(patches)
        lookup = flatten(raster)
        compressed = flatten(resize(raster, self.config.compressed_grid(patches, num_compressed)))
        for block in self.blocks:
            if hidden_states is not None:
                hidden_states.append(self._output(compressed, lookup))
            compressed, lookup = block(compressed, lookup)
        tokens = self._output(compressed, lookup)
        if hidden_states is not None:
            hidden_states.append(tokens)
        return EncoderOutput(last_hidden_state=self.norm(tokens))

    def _output(self, compressed: Tensor, lookup: Tensor) -> Tensor:
        return compressed if self.config.output == "compressed" else lookup


class LookupViTBlock(GradientCheckpointingLayer):
    """Gather, a transformer block on the compressed tokens, and scatter with a light MLP.

    Args:
        config: Of the encoder.
        scatters: Whether the lookup tokens are updated.
    """

    def __init__(self, config: LookupViTConfig, scatters: bool) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.gather = Gather(width, config.num_attention_heads, eps)
        self.block = Block(config, width, config.num_attention_heads, config.intermediate_size, eps)
        self.scatter = self.norm = self.mlp = None
        if scatters:
            self.scatter = Scatter(width, config.num_attention_heads, eps, config.normalize_scatter)
            self.norm = nn.LayerNorm(width, eps=eps)
            self.mlp = MLP(width, config.lookup_intermediate_size)

    def forward(self, compressed: Tensor, lookup: Tensor) -> tuple[Tensor, Tensor]:
        """Map compressed tokens `(B, M, D)` and lookup tokens `(B, N, D)` to both."""
        gathered, weights = self.gather(compressed, lookup)
        compressed = self.block(compressed + gathered)
        if self.scatter is not None and self.norm is not None and self.mlp is not None:
            lookup = lookup + self.scatter(compressed, weights)
            lookup = lookup + self.mlp(self.norm(lookup))
        return compressed, lookup


class Gather(nn.Module):
    """Cross-attention of compressed tokens to lookup tokens, with its weights."""

    def __init__(self, width: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.compressed_norm = nn.LayerNorm(width, eps=eps)
        self.lookup_norm = nn.LayerNorm(width, eps=eps)
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, compressed: Tensor, lookup: Tensor) -> tuple[Tensor, Tensor]:
        """What `(B, M, D)` compressed tokens gather, and the weights `(B, heads, M, N)`, whose rows sum to 1."""
        lookup = self.lookup_norm(lookup)
        query = split_heads(self.q_proj(self.compressed_norm(compressed)), self.num_heads)
        key, value = (split_heads(project(lookup), self.num_heads) for project in (self.k_proj, self.v_proj))
        logits = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
        weights = logits.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
        return self.out_proj((weights @ value).transpose(1, 2).flatten(2)), weights


class Scatter(nn.Module):
    """What lookup tokens read of compressed tokens by the transposed weights of `Gather`."""

    def __init__(self, width: int, num_heads: int, eps: float, normalize: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.normalize = normalize
        self.norm = nn.LayerNorm(width, eps=eps)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, compressed: Tensor, weights: Tensor) -> Tensor:
        """Map `(B, M, D)` with weights `(B, heads, M, N)` to `(B, N, D)`."""
        if self.normalize:
            weights = weights / weights.sum(dim=2, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
        value = split_heads(self.v_proj(self.norm(compressed)), self.num_heads)
        return self.out_proj((weights.transpose(2, 3) @ value).transpose(1, 2).flatten(2))
