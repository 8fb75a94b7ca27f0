"""STViT: four stages of convolutions and attention, in the early ones among super tokens."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from foveate.core.tokens import Grid
from foveate.models.encoders.encoder import Encoder, EncoderOutput, SelfInitialized
from foveate.models.encoders.layers import Attention, flatten
from foveate.models.encoders.stvit.configuration import STViTConfig
from foveate.models.encoders.stvit.super_tokens import associate, cells_of, raster_of, sample, spread


class STViTModel(Encoder):
    """Vision transformer with super token attention.

        block: X = X + depthwise 3 x 3 (X)
               X = X + STA(LN X)
               X = X + MLP(BN X)                        1 x 1, GELU, X + depthwise 3 x 3 (X), 1 x 1
        STA:   Q = association of tokens with the 3 x 3 super tokens around them, see `associate`
               S = Q^T X / (Q^T 1)
               STA(X) = Q (self-attention of S)

    Super tokens start as the means of cells, of 8 x 8 tokens in the first stage and 4 x 4 in the second, which makes 7
    x 7 of an image of 224 x 224 pixels in both. Attention among them sees the whole image, and only the linear layers
    and the association, of 9 weights per token, run on all tokens. Later stages attend among all tokens.

    Vision Transformer with Super Token Sampling (Huang et al., arXiv 2211.11167, CVPR 2023). `border` chooses what
    happens where cells lack neighbors; its default is that of the authors' weights, which
    `convert_released_state` reads. Stochastic depth, which the authors train with, is not implemented.

    Tokens are those of the last stage, 7 x 7 of an image of 224 x 224 pixels, without a norm, as the authors' next
    layer is the projection of the classifier. Hidden states are those after every block, each with the width and the
    number of tokens of its stage.
    """

    config_class = STViTConfig
    _no_split_modules = ["STViTBlock"]
    title: ClassVar[str] = "Vision Transformer with Super Token Sampling"
    paper: ClassVar[str] = "arXiv 2211.11167"

    def __init__(self, config: STViTConfig) -> None:
        super().__init__(config)
        widths = config.hidden_sizes
        self.stem = Stem(config.num_channels, widths[0])
        self.stages = nn.ModuleList(
            STViTStage(config, stage, widths[stage - 1] if stage else None) for stage in range(len(widths))
        )
        self.post_init()

    def encode(self, pixel_values: Tensor, grid: Grid, hidden_states: list[Tensor] | None) -> EncoderOutput:
        """See `Encoder.encode`."""
        raster = self.stem(pixel_values)
        if hidden_states is not None:
            hidden_states.append(flatten(raster))
        stages: Any = self.stages
        for stage in stages:
            raster = stage.merging(raster)
            for block in stage.blocks:
                raster = block(raster)
                if hidden_states is not None:
                    hidden_states.append(flatten(raster))
        return EncoderOutput(last_hidden_state=flatten(raster))


class Stem(nn.Sequential):
    """Four convolutions with batch norms, of stride 4 together: `(B, C, H, W)` to `(B, D, H / 4, W / 4)`.

    Args:
        channels: `C`.
        width: `D`; the first two convolutions have half as many channels.
    """

    def __init__(self, channels: int, width: int) -> None:
        layers: list[nn.Module] = []
        for outputs, stride in ((width // 2, 2), (width // 2, 1), (width, 2), (width, 1)):
            layers += [nn.Conv2d(channels, outputs, 3, stride, padding=1), nn.GELU(), nn.BatchNorm2d(outputs)]
            channels = outputs
        super().__init__(*layers)


class STViTStage(nn.Module):
    """Blocks of one width, and before them a convolution of stride 2.

    Args:
        config: Of the encoder.
        stage: Its number, from 0 on.
        inputs: Width of the stage before; None: there is none and no convolution.
    """

    def __init__(self, config: STViTConfig, stage: int, inputs: int | None) -> None:
        super().__init__()
        width = config.hidden_sizes[stage]
        self.merging = nn.Sequential()
        if inputs is not None:
            self.merging.extend([nn.Conv2d(inputs, width, 3, stride=2, padding=1), nn.BatchNorm2d(width)])
        self.blocks = nn.ModuleList(STViTBlock(config, stage) for _ in range(config.depths[stage]))


class STViTBlock(GradientCheckpointingLayer):
    """Convolutional positions, super token attention, and an MLP with a convolution.

    Args:
        config: Of the encoder.
        stage: Number of its stage.
    """

    def __init__(self, config: STViTConfig, stage: int) -> None:
        super().__init__()
        width = config.hidden_sizes[stage]
        self.position = DepthwiseConvolution(width)
        self.norm1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.attention = SuperTokenAttention(config, stage)
        self.norm2 = nn.BatchNorm2d(width)
        self.mlp = ConvMLP(width, int(width * config.mlp_ratio))
        self.scale1, self.scale2 = (
            LayerScale(width, config.layer_scale_init_value) if config.layer_scale[stage] else nn.Identity()
            for _ in range(2)
        )

    def forward(self, raster: Tensor) -> Tensor:
        """Map `(B, D, rows, columns)` to the same shape."""
        raster = self.position(raster)
        normed = self.norm1(raster.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        raster = raster + self.scale1(self.attention(normed))
        return raster + self.scale2(self.mlp(self.norm2(raster)))


class SuperTokenAttention(nn.Module):
    """Self-attention among super tokens, whose results are mapped back to the tokens.

    Args:
        config: Of the encoder.
        stage: Number of the stage.
    """

    def __init__(self, config: STViTConfig, stage: int) -> None:
        super().__init__()
        self.cell_size = config.cell_sizes[stage]
        self.iterations = config.num_iterations
        self.masked = config.border == "masked"
        self.self_attention = Attention(config, config.hidden_sizes[stage], config.num_heads[stage])

    def forward(self, raster: Tensor) -> Tensor:
        """Map `(B, D, rows, columns)` to the same shape."""
        if self.cell_size == 1:
            return self.attend(raster)
        cells, grid = cells_of(raster, self.cell_size)
        real = cells_of(torch.ones_like(raster[:1, :1]), self.cell_size)[0] if self.masked else None
        association = associate(cells, grid, self.iterations, real)
        tokens = self.attend(sample(cells, association, grid))
        return raster_of(spread(tokens, association), grid, self.cell_size, *raster.shape[-2:])

    def attend(self, raster: Tensor) -> Tensor:
        """Self-attention among all tokens of a raster `(B, D, rows, columns)`."""
        return self.self_attention(flatten(raster)).mT.unflatten(2, raster.shape[-2:])


class DepthwiseConvolution(nn.Module):
    """`X + depthwise 3 x 3 (X)`, which gives tokens positions.

    Args:
        width: Channels D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, raster: Tensor) -> Tensor:
        """Map `(B, D, rows, columns)` to the same shape."""
        return raster + self.conv(raster)


class ConvMLP(nn.Module):
    """An MLP on every token with a depthwise convolution between its layers.

    Args:
        width: Channels D.
        hidden: Width of the hidden layer.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(width, hidden, 1)
        self.activation = nn.GELU()
        self.position = DepthwiseConvolution(hidden)
        self.fc2 = nn.Conv2d(hidden, width, 1)

    def forward(self, raster: Tensor) -> Tensor:
        """Map `(B, D, rows, columns)` to the same shape."""
        return self.fc2(self.position(self.activation(self.fc1(raster))))


class LayerScale(SelfInitialized):
    """Multiplies every channel by a learned number.

    Args:
        width: Channels D.
        value: That the numbers start with.
    """

    def __init__(self, width: int, value: float) -> None:
        super().__init__()
        self.value = value
        self.weight = nn.Parameter(torch.full((width, 1, 1), value))

    def reset_parameters(self, std: float) -> None:
        """See `SelfInitialized.reset_parameters`."""
        init.constant_(self.weight, self.value)

    def forward(self, raster: Tensor) -> Tensor:
        """Map `(B, D, rows, columns)` to the same shape."""
        return raster * self.weight
