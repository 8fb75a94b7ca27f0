"""ConvLLaVA: ConvNeXt of `transformers` with any number of stages, as an encoder of visual tokens."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.convnext.modeling_convnext import ConvNextEmbeddings, ConvNextLayer, ConvNextStage

from foveate.core.tokens import Grid
from foveate.models.encoders.convllava.configuration import ConvLLaVAConfig
from foveate.models.encoders.encoder import Encoder, EncoderOutput
from foveate.models.encoders.layers import flatten


class ConvLLaVAModel(Encoder):
    """ConvNeXt of five stages: a stem of stride 4, and stages that halve rows and columns before their blocks.

        block: x = x + scale * W2 GELU(W1 LN(depthwise 7 x 7 (x)))      W1: D -> 4 D, W2: 4 D -> D

    The tokens are the positions of the last map, one for 64 x 64 pixels: 144 of an image of 768 x 768 pixels, 256 of
    1024 x 1024 and 576 of 1536 x 1536. The cost is linear in the number of pixels. As in the authors' code, no norm
    follows the last block.

    ConvLLaVA: Hierarchical Backbones as Visual Encoder for Large Multimodal Models (Ge et al., arXiv 2405.15738). The
    authors add the fifth stage to a ConvNeXt-L of CLIP and train it, together with a part of the encoder, in the
    language model. `ConvLLaVAConfig.with_stage` adds a stage to a configuration. Weights have the names of
    `ConvNextModel`, so that `from_pretrained` reads the authors' towers and any ConvNeXt of `transformers`;
    `initialize_from_clip` reads those of timm and OpenCLIP.

    Hidden states are those after every block, each with the width of its stage.
    """

    config_class = ConvLLaVAConfig
    # The names of `ConvNextModel` begin with "encoder.", which the prefix of other encoders here would hide.
    base_model_prefix = "convllava"
    _no_split_modules = ["ConvLLaVABlock"]
    title: ClassVar[str] = "ConvLLaVA: Hierarchical Backbones as Visual Encoder for Large Multimodal Models"
    paper: ClassVar[str] = "arXiv 2405.15738"

    def __init__(self, config: ConvLLaVAConfig) -> None:
        super().__init__(config)
        config.check()  # `from_pretrained` sets fields after the configuration was checked
        self.embeddings = ConvNextEmbeddings(config)
        self.encoder = ConvLLaVAStages(config)
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = config.layer_norm_eps
        # A norm of the pooled map, and the block that this model lacks.
        unused = [r"(^|vision_tower\.)layernorm\."]
        if config.drop_last_block:
            last, block = len(config.depths) - 1, config.depths[-1] - 1
            unused.append(rf"(^|\.)encoder\.stages\.{last}\.layers\.{block}\.")
        self._keys_to_ignore_on_load_unexpected = unused
        self.post_init()

    def encode(self, pixel_values: Tensor, grid: Grid, hidden_states: list[Tensor] | None) -> EncoderOutput:
        """See `Encoder.encode`."""
        raster = self.embeddings(pixel_values)
        if hidden_states is not None:
            hidden_states.append(flatten(raster))
        stages: Any = self.encoder.stages
        for stage in stages:
            for layer in stage.downsampling_layer:
                raster = layer(raster)
            for block in stage.layers:
                raster = block(raster)
                if hidden_states is not None:
                    hidden_states.append(flatten(raster))
        return EncoderOutput(last_hidden_state=flatten(raster))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ConvLLaVABlock) and module.layer_scale_parameter is not None:
            init.constant_(module.layer_scale_parameter, self.config.layer_scale_init_value)


class ConvLLaVABlock(GradientCheckpointingLayer, ConvNextLayer):
    """A block of ConvNeXt that can be checkpointed."""

    def forward(self, features: Tensor) -> Tensor:
        """Map `(B, D, rows, columns)` to the same shape."""
        return super().forward(features)


class ConvLLaVAStages(nn.Module):
    """The stages, under the names of `ConvNextEncoder`.

    Args:
        config: Of the encoder.
    """

    def __init__(self, config: ConvLLaVAConfig) -> None:
        super().__init__()
        counts, widths = config.stage_blocks, config.hidden_sizes
        rates = torch.linspace(0, config.drop_path_rate, sum(counts), device="cpu").split(counts)
        self.stages = nn.ModuleList()
        for number, (width, stage_rates) in enumerate(zip(widths, rates, strict=True)):
            stage = ConvNextStage(config, widths[max(number - 1, 0)], width, stride=2 if number else 1, depth=0)
            stage.layers.extend(ConvLLaVABlock(config, width, rate) for rate in stage_rates.tolist())
            self.stages.append(stage)
