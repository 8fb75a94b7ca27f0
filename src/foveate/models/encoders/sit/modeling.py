"""SiT: LV-ViT whose tokens are softly aggregated into fewer ones after some blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init

from foveate.core.tokens import Grid
from foveate.models.encoders.encoder import Encoder, EncoderOutput, SelfInitialized
from foveate.models.encoders.layers import MLP, Block, LearnedTokens, Positions, flatten
from foveate.models.encoders.sit.configuration import SiTConfig


@dataclass
class SiTOutput(EncoderOutput):
    """Output of a [`SiTModel`].

    Args:
        recovered_tokens: In training, for distillation: for every block the tokens `(B, N, D)` of all N patches after
            it, recovered from the slimmed ones where there are fewer.
    """

    recovered_tokens: tuple[Tensor, ...] | None = None


class SiTModel(Encoder):
    """LV-ViT with token slimming modules after the blocks that end its stages.

        A = softmax over tokens (scale * MLP(LN X))       X (N, D), MLP D -> D/2 -> n with GELU, A (N, n)
        X' = A^T X                                        (n, D), every token a weighted mean of all of them

    [CLS] is not slimmed. With a keeping ratio of 1/2 and four stages, 196 patches become 98, 49 and 24 tokens. Tokens
    after a slimming module have no place in the image: they do not depend on the order of the tokens before it, and the
    output grid is 1 x n. The number n is the width of a weight and does not follow the size of the image.

    Self-slimmed Vision Transformer (Zong et al., arXiv 2111.12624, ECCV 2022). For training, one reverse module per
    block from the first slimming on recovers all N tokens, which `frd_loss` compares with those of a teacher: the same
    network without slimming. Outside of training they do not run.

    The last hidden state and [CLS] (`prefix_tokens`) are normalized. Layers before the first slimming are those of
    LV-ViT: a stem of convolutions and batch norms, no bias of queries, keys and values, residual branches divided by 2
    or 3, and a hidden width of the MLPs of 3 D. The second teacher of the authors, a convolutional network that labels
    a distillation token, is not implemented; their own code of it does not run.
    """

    config_class = SiTConfig
    _no_split_modules = ["Block"]
    title: ClassVar[str] = "Self-slimmed Vision Transformer"
    paper: ClassVar[str] = "arXiv 2111.12624"

    def __init__(self, config: SiTConfig) -> None:
        super().__init__(config)
        width, eps = config.hidden_size, config.layer_norm_eps
        side = config.image_size // config.patch_size
        self.stem = Stem(config.num_channels, width, config.stem_convolutions)
        self.cls_token = LearnedTokens(1, width)
        self.positions = Positions(Grid(side, side), width)
        self.blocks = nn.ModuleList(
            Block(
                config,
                width,
                config.num_attention_heads,
                config.intermediate_size,
                eps,
                bias=False,
                residual_scale=1 / config.residual_divisor,
            )
            for _ in range(config.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(width, eps=eps)
        after, tokens = config.slimmed_after, config.stage_tokens
        #: By the number of blocks before each.
        self.slimming = nn.ModuleDict(
            {str(count): TokenSlimming(width, tokens[stage], eps) for stage, count in enumerate(after, 1)}
        )
        #: By the number of blocks before each.
        self.reverse = nn.ModuleDict()
        if config.reverse_modules and after:
            for count in range(after[0], config.num_hidden_layers + 1):
                stage = sum(end <= count for end in after)
                self.reverse[str(count)] = ReverseSlimming(width, tokens[stage], tokens[0], eps)
        self.post_init()

    def encode(
        self,
        pixel_values: Tensor,
        grid: Grid,
        hidden_states: list[Tensor] | None,
        output_recovered: bool | None = None,
    ) -> SiTOutput:
        """See `Encoder.encode`.

        Args:
            output_recovered: Return `recovered_tokens`; None: in training, for images of `image_size`.
        """
        raster = self.stem(pixel_values)
        patches = Grid(*raster.shape[-2:])
        if output_recovered is None:
            output_recovered = self.training and patches.size == self.config.stage_tokens[0]
        tokens = flatten(raster + self.positions(patches))
        x = torch.cat([self.cls_token(len(tokens)), tokens], dim=1)
        recovered: list[Tensor] = []
        if hidden_states is not None:
            hidden_states.append(tokens)
        for count, block in enumerate(self.blocks, 1):
            x = block(x)
            if str(count) in self.slimming:
                x = torch.cat([x[:, :1], self.slimming[str(count)](x[:, 1:])], dim=1)
            if hidden_states is not None:
                hidden_states.append(x[:, 1:])
            if output_recovered:
                reverse = self.reverse[str(count)] if str(count) in self.reverse else nn.Identity()
                recovered.append(reverse(x[:, 1:]))
        x = self.norm(x)
        return SiTOutput(
            last_hidden_state=x[:, 1:],
            prefix_tokens=x[:, :1],
            recovered_tokens=tuple(recovered) if output_recovered else None,
        )


class Stem(nn.Sequential):
    """Four or six convolutions with batch norms, of stride 16 together: `(B, C, H, W)` to `(B, D, H / 16, W / 16)`.

    Args:
        channels: `C`.
        width: `D`; the convolutions before the last have D/8, D/4 and D/2 channels.
        convolutions: 4, or 6 with two more of stride 1 after the first.
    """

    def __init__(self, channels: int, width: int, convolutions: int) -> None:
        plain = [(width // 8, 1)] * (convolutions - 4)
        sizes = [(width // 8, 2), *plain, (width // 4, 2), (width // 2, 2), (width, 2)]
        layers: list[nn.Module] = []
        for size, stride in sizes:
            layers += [nn.Conv2d(channels, size, 3, stride, padding=1, bias=False), nn.BatchNorm2d(size), nn.GELU()]
            channels = size
        super().__init__(*layers[:-1])


class TokenSlimming(SelfInitialized):
    """Weighted means of all tokens, with weights that each token computes.

    Args:
        width: `D`.
        count: Tokens n of the output.
        eps: Of the layer norm.
    """

    def __init__(self, width: int, count: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(width, width // 2, output=count)
        self.scale = nn.Parameter(torch.ones(()))

    def reset_parameters(self, std: float) -> None:
        """See `SelfInitialized.reset_parameters`."""
        init.ones_(self.scale)

    def weights(self, x: Tensor) -> Tensor:
        """Weights `(B, N, n)` of tokens `(B, N, D)`; they sum to 1 over N."""
        return (self.mlp(self.norm(x)) * self.scale).softmax(dim=1, dtype=torch.float32).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens `(B, N, D)` to `(B, n, D)`."""
        return self.weights(x).transpose(1, 2) @ x


class ReverseSlimming(nn.Module):
    """Recovers N tokens from n: `Y = MLP(LN(X)^T)^T` over tokens, then `Y + MLP(LN Y)` over channels.

    Args:
        width: `D`.
        count: `n`.
        patches: `N`; the hidden layers of the MLPs are 4 N and 4 D wide.
        eps: Of the layer norms.
    """

    def __init__(self, width: int, count: int, patches: int, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.token_mlp = MLP(count, 4 * patches, output=patches)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.channel_mlp = MLP(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens `(B, n, D)` to `(B, N, D)`."""
        x = self.token_mlp(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channel_mlp(self.norm2(x))
