"""Adventurer: causal Mamba-2 blocks over a sequence of patches that ends in [CLS]."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from foveate.core.tokens import Grid, wide
from foveate.models.encoders.adventurer.configuration import AdventurerConfig
from foveate.models.encoders.adventurer.scan import SCANS
from foveate.models.encoders.encoder import Encoder, EncoderOutput, SelfInitialized
from foveate.models.encoders.layers import LearnedTokens, Positions, flatten

#: Ranges of the initial rates of decay and step sizes of Mamba-2.
_DECAY, _STEP = (1.0, 16.0), (1e-3, 1e-1)


class AdventurerModel(Encoder):
    """Twelve causal Mamba-2 blocks, for patches of 16 pixels down to single pixels.

        X = [patches + positions, CLS]                       (N + 1, D)
        every block:
        U = RMSNorm X, the patches in reverse in some blocks
        X = X + mixer([mean of U, U])[1:]                    the order restored
        X = X + SwiGLU(RMSNorm X)

    Scaling Laws in Patchification (Wang et al., arXiv 2502.03738), with the model of Adventurer (Wang et al., arXiv
    2410.07599). A causal scan shows a token nothing of later ones; the mean of all tokens before the first gives every
    token a view of the whole image, and the reverse order gives the first patches what comes after them. Only [CLS],
    which is last in both orders, reads all patches through the scan; the authors classify from it (`prefix_tokens`).
    Time and memory are linear in N, up to 50,176 tokens of a 224 x 224 image at one pixel per token.

    The last hidden state and [CLS] are normalized. The position of [CLS] is part of its weight. Positions are resized
    bicubically for other grids. `with_patch_size` gives an encoder other patches. Layers are the authors', and
    `convert_released_state` reads their weights; linear layers are initialized as in all encoders here, the mixer's
    rates, step sizes and convolutions as in Mamba-2. Dropping whole blocks in training is not implemented.
    """

    config_class = AdventurerConfig
    _no_split_modules = ["AdventurerBlock"]
    title: ClassVar[str] = "Scaling Laws in Patchification: An Image Is Worth 50,176 Tokens And More"
    paper: ClassVar[str] = "arXiv 2502.03738"

    def __init__(self, config: AdventurerConfig) -> None:
        super().__init__(config)
        width, side = config.hidden_size, config.image_size // config.patch_size
        self.patches = nn.Conv2d(config.num_channels, width, config.patch_size, config.patch_size)
        self.cls_token = LearnedTokens(1, width)
        self.positions = Positions(Grid(side, side), width, mode="bicubic")
        self.blocks = nn.ModuleList(
            AdventurerBlock(config, config.flipped(block)) for block in range(config.num_hidden_layers)
        )
        self.norm = nn.RMSNorm(width, eps=config.norm_eps)
        self.post_init()

    def encode(self, pixel_values: Tensor, grid: Grid, hidden_states: list[Tensor] | None) -> EncoderOutput:
        """See `Encoder.encode`."""
        tokens = flatten(self.patches(pixel_values) + self.positions(grid))
        x = torch.cat([tokens, self.cls_token(len(tokens))], dim=1)
        if hidden_states is not None:
            hidden_states.append(tokens)
        for block in self.blocks:
            x = block(x)
            if hidden_states is not None:
                hidden_states.append(x[:, :-1])
        x = self.norm(x)
        return EncoderOutput(last_hidden_state=x[:, :-1], prefix_tokens=x[:, -1:])


class AdventurerBlock(GradientCheckpointingLayer):
    """A mixer over the mean of all tokens and the tokens, then a SwiGLU.

    Args:
        config: Of the encoder.
        flip: Whether the mixer reads the patches in reverse.
    """

    def __init__(self, config: AdventurerConfig, flip: bool) -> None:
        super().__init__()
        width = config.hidden_size
        self.flip = flip
        self.norm1 = nn.RMSNorm(width, eps=config.norm_eps)
        self.mixer = Mamba2Mixer(config)
        self.norm2 = nn.RMSNorm(width, eps=config.norm_eps)
        self.mlp = SwiGLU(width, config.intermediate_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map patches and [CLS] `(B, N + 1, D)` to `(B, N + 1, D)`."""
        tokens = reverse_patches(self.norm1(x)) if self.flip else self.norm1(x)
        mixed = self.mixer(torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1))[:, 1:]
        x = x + (reverse_patches(mixed) if self.flip else mixed)
        return x + self.mlp(self.norm2(x))


class Mamba2Mixer(SelfInitialized):
    """The causal mixer of Mamba-2: projections, a short convolution, the scan, and a gated norm.

        z, x, b, c, dt = W U                                 dt one number per head
        x, b, c = SiLU(causal depthwise convolution)
        y = scan(x, softplus(dt + dt_bias), -exp(A_log), b, c) + D x
        out = W' RMSNorm(y SiLU(z))

    Args:
        config: Of the encoder.
    """

    def __init__(self, config: AdventurerConfig) -> None:
        super().__init__()
        inner, state, heads = config.inner_size, config.state_size, config.inner_size // config.head_dim
        self.scan, self.chunk_size = SCANS[config.scan], config.chunk_size
        self.parts = (inner, state, state)
        self.in_proj = nn.Linear(config.hidden_size, 2 * inner + 2 * state + heads, bias=False)
        channels = inner + 2 * state
        self.conv1d = nn.Conv1d(channels, channels, config.conv_kernel, groups=channels)
        self.dt_bias = nn.Parameter(torch.zeros(heads))
        self.A_log = nn.Parameter(torch.zeros(heads))
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = nn.RMSNorm(inner, eps=config.norm_eps)
        self.out_proj = nn.Linear(inner, config.hidden_size, bias=False)

    def reset_parameters(self, std: float) -> None:
        """See `SelfInitialized.reset_parameters`; the ranges are those of Mamba-2 and do not depend on `std`."""
        bound = self.conv1d.kernel_size[0] ** -0.5
        for parameter in self.conv1d.parameters():
            init.uniform_(parameter, -bound, bound)
        init.ones_(self.D)
        init.copy_(self.A_log, torch.empty_like(self.A_log).uniform_(*_DECAY).log())
        low, high = (math.log(value) for value in _STEP)
        step = torch.empty_like(self.dt_bias).uniform_(low, high).exp()
        init.copy_(self.dt_bias, step.expm1().log())  # the inverse of softplus

    def forward(self, u: Tensor) -> Tensor:
        """Map tokens `(B, N, D)` to `(B, N, D)`; token n depends on tokens up to n alone."""
        heads = len(self.dt_bias)
        gate, mixed, dt = self.in_proj(u).split([self.parts[0], sum(self.parts), heads], dim=-1)
        padded = F.pad(mixed.transpose(1, 2), (self.conv1d.kernel_size[0] - 1, 0))
        x, b, c = F.silu(self.conv1d(padded)).transpose(1, 2).split(self.parts, dim=-1)
        x = x.unflatten(-1, (heads, -1))
        step = F.softplus(wide(dt) + wide(self.dt_bias))
        y = self.scan(x, step, -wide(self.A_log).exp(), b, c, self.chunk_size) + self.D[:, None] * x
        return self.out_proj(self.norm(y.flatten(2) * F.silu(gate)))


class SwiGLU(nn.Module):
    """`down(SiLU(gate x) * up x)`, with biases.

    Args:
        width: Width D of the tokens.
        hidden: Width of the hidden layer.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden)
        self.up_proj = nn.Linear(width, hidden)
        self.down_proj = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(..., D)` to `(..., D)`."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def reverse_patches(x: Tensor) -> Tensor:
    """Reverse the order of all tokens but the last, [CLS]."""
    return torch.cat([x[:, :-1].flip(1), x[:, -1:]], dim=1)
