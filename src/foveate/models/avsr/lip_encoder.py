"""Encoder of a speaker's mouth: one feature per frame."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput

from foveate.core.errors import FoveateError
from foveate.models.avsr.configuration import LipEncoderConfig
from foveate.models.encoders.layers import Block


class LipEncoder(PreTrainedModel):
    """Convolutions over space and time, then a transformer over the frames of a clip.

    A small model with the structure of the front ends of lip reading (3D convolution, 2D convolutions per frame, a
    transformer), which stands for AV-HuBERT where a model is trained from scratch.
    """

    config: LipEncoderConfig
    config_class = LipEncoderConfig
    base_model_prefix = "lip_encoder"
    main_input_name = "video_values"
    input_modalities = ("video",)  # ty: ignore[invalid-assignment]
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: LipEncoderConfig) -> None:
        super().__init__(config)
        width, channels = config.hidden_size, config.conv_channels
        self.conv1 = nn.Conv3d(1, channels, (5, 5, 5), stride=(1, 2, 2), padding=2)
        self.conv2 = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(2 * channels, 4 * channels, 3, stride=2, padding=1)
        self.norm1, self.norm2 = nn.GroupNorm(1, channels), nn.GroupNorm(1, 2 * channels)
        self.project = nn.Linear(4 * channels * (config.image_size // 8) ** 2, width)
        self.positions = nn.Conv1d(width, width, 15, padding=7, groups=config.num_attention_heads)
        self.blocks = nn.ModuleList(
            Block(config, width, config.num_attention_heads, config.intermediate_size)
            for _ in range(config.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            init.kaiming_normal_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            init.normal_(module.weight, std=self.config.initializer_range)
            init.zeros_(module.bias)
        elif isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
            init.ones_(module.weight)
            init.zeros_(module.bias)

    def forward(self, video_values: Tensor) -> BaseModelOutput:
        """Encode grey clips `(B, T, H, W)` in [-1, 1]; `last_hidden_state` is `(B, T, D)`.

        Raises:
            FoveateError: the clips have another shape.
        """
        side = self.config.image_size
        if video_values.ndim != 4 or video_values.shape[2:] != (side, side):
            raise FoveateError(
                f"the lip encoder reads clips (B, T, {side}, {side}), not a tensor of {tuple(video_values.shape)}."
            )
        x = self.conv1(video_values.to(self.dtype).unsqueeze(1)).transpose(1, 2)  # (B, T, C, H, W)
        frames = nn.functional.gelu(self.norm1(x.flatten(0, 1)))
        frames = nn.functional.gelu(self.norm2(self.conv2(frames)))
        frames = nn.functional.gelu(self.conv3(frames)).flatten(1)
        hidden = self.project(frames).unflatten(0, x.shape[:2])
        hidden = hidden + nn.functional.gelu(self.positions(hidden.transpose(1, 2))).transpose(1, 2)
        for block in self.blocks:
            hidden = block(hidden)
        return BaseModelOutput(last_hidden_state=self.norm(hidden))
