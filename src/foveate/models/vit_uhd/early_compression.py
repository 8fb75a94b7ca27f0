"""The early compressor of LLaVA-UHD v4: a learned stage initialised from the block before it.

LLaVA-UHD v4 (arXiv 2605.08985) merges 2 x 2 tokens once, early in the vision transformer (after 7 of 27 blocks in its
released descendant, MiniCPM-V 4.6), with window attention and a pixel-unshuffle MLP. For the four tokens x_1..x_4 of a
window, row-major, each of width D, and an MLP width F:

    y   = x + attention(norm0(x))                        among the four tokens only, without positions
    z   = norm1([y_1 ; y_2 ; y_3 ; y_4])                 4D
    out = mean(y) + W2 act(W1 z + b1) + b2               W1: 4D -> 4F,  W2: 4F -> D

What makes it train is the start: all parameters are those of the preceding block k (`init_from_block`). Attention and
norm0 are copied, W1 is four times F1 on the diagonal, W2 is [F2 F2 F2 F2] / 4, so that the stage begins as "block k
once more, then the mean of the window". norm1 takes its statistics over the whole window, which makes this exact only
for equal tokens; with `early_per_token_norm` each token is normalised by itself and it is exact for all.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.activations import ACT2FN

from foveate.models.vit_uhd.configuration import ViTUHDConfig


class EarlyCompressor(nn.Module):
    """Each window becomes the mean of its attended tokens plus an MLP of all four.

    Args:
        config: A `ViTUHDConfig`; width, heads, MLP (plain or gated), norm and biases are those of its blocks, so
            that a block's parameters fit. Attention always runs on PyTorch's SDPA: it has four keys.
    """

    def __init__(self, config: ViTUHDConfig) -> None:
        super().__init__()
        width, hidden = config.hidden_size, 4 * config.intermediate_size
        norm = nn.LayerNorm if config.norm_type == "layer_norm" else nn.RMSNorm
        self.num_heads = config.num_attention_heads
        self.attention_dropout = config.attention_dropout
        self.initializer_range = config.initializer_range
        self.per_token_norm = config.early_per_token_norm

        self.norm0 = norm(width, eps=config.layer_norm_eps)
        self.wqkv = nn.Linear(width, 3 * width, bias=config.attention_bias)
        self.wo = nn.Linear(width, width, bias=config.attention_bias)
        self.norm1 = norm(width if self.per_token_norm else 4 * width, eps=config.layer_norm_eps)
        self.fc0 = nn.Linear(4 * width, hidden, bias=config.mlp_bias)
        self.gate = nn.Linear(4 * width, hidden, bias=config.mlp_bias) if config.mlp_type == "gated" else None
        self.act = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(hidden, width, bias=config.mlp_bias)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start as reuse would from a block that is fresh itself: one random FFN, repeated for the four tokens.

        The attention and the norms are left to the model's own initialisation.
        """
        width, hidden = self.fc1.out_features, self.fc1.in_features // 4
        for layer in filter(None, (self.fc0, self.gate)):
            init.copy_(layer.weight, _on_diagonal(torch.empty(hidden, width).normal_(std=self.initializer_range)))
        init.copy_(self.fc1.weight, _over_tokens(torch.empty(width, hidden).normal_(std=self.initializer_range)))

    @torch.no_grad()
    def init_from_block(self, block: nn.Module) -> None:
        """Take over the parameters of the block before this stage, as LLaVA-UHD v4 does.

        Args:
            block: The `ViTUHDBlock` after which the stage runs; it is not changed and shares no memory.
        """
        given = block.state_dict()
        for layer in ("norm0", "wqkv", "wo"):
            for name, parameter in getattr(self, layer).named_parameters():
                parameter.copy_(given[f"{layer}.{name}"])
        for name, parameter in self.norm1.named_parameters():
            parameter.copy_(given[f"norm1.{name}"].repeat(1 if self.per_token_norm else 4))

        for name, layer in (("mlp.fc0", self.fc0), ("mlp.gate", self.gate)):
            if layer is not None:
                layer.weight.copy_(_on_diagonal(given[f"{name}.weight"]))
                if layer.bias is not None:
                    layer.bias.copy_(given[f"{name}.bias"].repeat(4))
        self.fc1.weight.copy_(_over_tokens(given["mlp.fc1.weight"]))
        if self.fc1.bias is not None:
            self.fc1.bias.copy_(given["mlp.fc1.bias"])  # one token gets one bias: only the weights are quartered

    def attend(self, windows: torch.Tensor) -> torch.Tensor:
        """The y of the equations above, (M, 4, D) -> (M, 4, D). Tokens of different windows do not meet."""
        heads = self.wqkv(self.norm0(windows)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        dropout = self.attention_dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        return windows + self.wo(attended.transpose(1, 2).flatten(2))

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """(M, 4, D) -> (M, D)."""
        y = self.attend(windows)
        z = self.norm1(y).flatten(1) if self.per_token_norm else self.norm1(y.flatten(1))
        hidden = self.act(self.fc0(z)) if self.gate is None else self.act(self.gate(z)) * self.fc0(z)
        return y.mean(dim=1) + self.fc1(hidden)


def _on_diagonal(weight: torch.Tensor) -> torch.Tensor:
    """(F, D) weights for one token -> (4F, 4D): each of four tokens into a quarter of the hidden units of its own."""
    return torch.block_diag(*[weight] * 4)


def _over_tokens(weight: torch.Tensor) -> torch.Tensor:
    """(D, F) weights for one token -> (D, 4F): the mean over four tokens."""
    return weight.repeat(1, 4) / 4


__all__ = ["EarlyCompressor"]
