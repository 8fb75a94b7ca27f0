"""PVC's encoder: spatial attention within every frame, and causal attention over the frames at every place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.encoders.encoder import Encoder, EncoderOutput, SelfInitialized
from foveate.models.encoders.layers import MLP, Attention, LearnedTokens, Positions, flatten, split_heads
from foveate.models.encoders.temporal_pvc.configuration import TemporalPVCConfig
from foveate.models.encoders.temporal_pvc.timesteps import AdaptiveLayerNorm, TimestepEmbedding, relative_times


class TemporalAttention(SelfInitialized):
    """Causal attention of every token to the tokens at its place in its own frame and in earlier ones.

    Args:
        width: Width D of the tokens.
        num_heads: Heads, which divide the width.
        zero_init: Whether the output begins at zero.
    """

    def __init__(self, width: int, num_heads: int, zero_init: bool) -> None:
        super().__init__()
        self.num_heads, self.zero_init = num_heads, zero_init
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def reset_parameters(self, std: float) -> None:
        """See `SelfInitialized.reset_parameters`."""
        if self.zero_init:
            init.zeros_(self.out_proj.weight)
            init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, counts: Sequence[int]) -> Tensor:
        """Mix the tokens `(F, N, D)` of clips with so many frames each: `(F, N, D)`."""
        # Clips are padded at their end, where causal attention does not look from a frame.
        clips = nn.utils.rnn.pad_sequence(x.split(list(counts)), batch_first=True)
        places = clips.transpose(1, 2).flatten(0, 1)  # (clips N, T, D)
        query, key, value = (
            split_heads(project(places), self.num_heads) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2).flatten(2)
        frames = self.out_proj(mixed).unflatten(0, (len(counts), -1)).transpose(1, 2)
        return torch.cat([clip[:count] for clip, count in zip(frames, counts, strict=True)])


class SpatialBlock(GradientCheckpointingLayer):
    """A block of InternViT: pre-norm attention within a frame and an MLP, each with learned factors per channel.

    With factors of 1 it is a block of SigLIP.
    """

    def __init__(self, config: TemporalPVCConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attention = Attention(config, width, config.num_attention_heads)
        self.scale1 = LayerScale(width, config.layer_scale_init_value)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(width, config.intermediate_size, config.hidden_act)
        self.scale2 = LayerScale(width, config.layer_scale_init_value)

    def forward(self, x: Tensor, times: Tensor, counts: Sequence[int]) -> Tensor:
        """Map the tokens `(F, N, D)` of frames."""
        x = x + self.scale1(self.attention(self.norm1(x)))
        return x + self.scale2(self.mlp(self.norm2(x)))


class TemporalBlock(GradientCheckpointingLayer):
    """A block that also attends over frames, and whose layer norms are conditioned on time."""

    def __init__(self, config: TemporalPVCConfig) -> None:
        super().__init__()
        width, heads = config.hidden_size, config.num_attention_heads

        def norm() -> AdaptiveLayerNorm:
            return AdaptiveLayerNorm(width, width, config.layer_norm_eps, config.zero_init)

        self.norm1, self.temporal_norm, self.norm2 = norm(), norm(), norm()
        self.attention = Attention(config, width, heads)
        self.scale1 = LayerScale(width, config.layer_scale_init_value)
        self.temporal_attention = TemporalAttention(width, heads, config.zero_init)
        self.mlp = MLP(width, config.intermediate_size, config.hidden_act)
        self.scale2 = LayerScale(width, config.layer_scale_init_value)

    def forward(self, x: Tensor, times: Tensor, counts: Sequence[int]) -> Tensor:
        """Map the tokens `(F, N, D)` of frames with embeddings of their times `(F, D)`."""
        x = x + self.scale1(self.attention(self.norm1(x, times)))
        x = x + self.temporal_attention(self.temporal_norm(x, times), counts)
        return x + self.scale2(self.mlp(self.norm2(x, times)))


class LayerScale(SelfInitialized):
    """Learned factors, one per channel.

    Args:
        width: Width D of the tokens.
        value: Their first value.
    """

    def __init__(self, width: int, value: float) -> None:
        super().__init__()
        self.value = value
        self.weight = nn.Parameter(torch.full((width,), value))

    def reset_parameters(self, std: float) -> None:
        """See `SelfInitialized.reset_parameters`."""
        init.constant_(self.weight, self.value)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply tokens `(..., D)`."""
        return x * self.weight


class TemporalPVCModel(Encoder):
    """A vision transformer whose last blocks encode in every frame what earlier frames have not shown.

        x = x + MHA(AdaLN(x, t))             within a frame
        x = x + T-MHA(AdaLN(x, t))           at every place p, over frames 1..i for frame i
        x = x + MLP(AdaLN(x, t))             AdaLN(x, t) = LN(x) (1 + gamma(TE(t))) + beta(TE(t))

    PVC: Progressive Visual Token Compression for Unified Image and Video Processing in Large Vision-Language Models
    (Yang et al., arXiv 2412.09613). An image is a clip of four equal frames, whose times alone differ, so that each can
    show other details. The connector `temporal_pvc` makes 64 tokens of a frame. It is another system than the
    progressive visual compression of LLaVA-UHD v3, which merges tokens from block to block of an image.

    From the paper; the authors' model code is part of their checkpoint alone and was not read. Our choices therefore:
    the number of blocks with attention over frames, their order within a block, that [CLS] takes part in it, the scale
    of times, and that the new parts begin at zero, so that an encoder made of a trained vision transformer
    (`with_temporal_blocks`) gives its outputs before it is trained.
    """

    config_class = TemporalPVCConfig
    _no_split_modules = ["SpatialBlock", "TemporalBlock"]
    title: ClassVar[str] = (
        "PVC: Progressive Visual Token Compression for Unified Image and Video Processing in Large Vision-Language "
        "Models"
    )
    paper: ClassVar[str] = "arXiv 2412.09613"

    def __init__(self, config: TemporalPVCConfig) -> None:
        super().__init__(config)
        width, side = config.hidden_size, config.image_size // config.patch_size
        self.patches = nn.Conv2d(config.num_channels, width, config.patch_size, config.patch_size)
        self.cls_token = LearnedTokens(1, width) if config.cls_token else None
        self.positions = Positions(Grid(side, side), width, mode="bicubic")
        self.timesteps = TimestepEmbedding(width)
        spatial = config.num_hidden_layers - config.temporal_layers
        self.blocks = nn.ModuleList(
            SpatialBlock(config) if number < spatial else TemporalBlock(config)
            for number in range(config.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps) if config.final_norm else nn.Identity()
        self.post_init()

    def encode(
        self,
        pixel_values: Tensor,
        grid: Grid,
        hidden_states: list[Tensor] | None,
        frame_counts: Sequence[int] | None = None,
        timestamps: Tensor | None = None,
        **options: Any,
    ) -> EncoderOutput:
        """See `Encoder.encode`.

        Args:
            pixel_values: Frames of clips, one clip after the other.
            grid: Of the output.
            hidden_states: As there.
            frame_counts: Frames of every clip; None: every image of the batch is one.
            timestamps: `(B,)`, seconds of every frame; None: frames are at equal distances.
            **options: None.

        Raises:
            FoveateError: The counts or times are not those of the frames.
        """
        batch = len(pixel_values)
        counts = [1] * batch if frame_counts is None else [int(count) for count in frame_counts]
        if sum(counts) != batch or min(counts, default=1) < 1:
            raise FoveateError(f"frame_counts must be numbers from 1 on whose sum is {batch}, not {counts}.")
        if timestamps is not None and timestamps.shape != (batch,):
            raise FoveateError(f"timestamps must be {batch} numbers, not of shape {tuple(timestamps.shape)}.")
        times = self.timesteps(self.config.time_scale * relative_times(counts, timestamps, pixel_values.device))
        x = tokens = flatten(self.patches(pixel_values) + self.positions(grid))
        if self.cls_token is not None:
            x = torch.cat([self.cls_token(batch), tokens], dim=1)
        first = x.shape[1] - tokens.shape[1]
        if hidden_states is not None:
            hidden_states.append(tokens)
        for block in self.blocks:
            x = block(x, times, counts)
            if hidden_states is not None:
                hidden_states.append(x[:, first:])
        x = self.norm(x)
        return EncoderOutput(last_hidden_state=x[:, first:], prefix_tokens=x[:, :first] if first else None)
