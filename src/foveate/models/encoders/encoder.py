"""Base class of trained encoders: from pixels to visual tokens, often fewer than patches.

An encoder is one folder of this package with two classes: its configuration, from which the number of tokens follows
for every size of an image, and the model. Models of `foveate.models.llava` read it as their `vision_config`, and
recipes name it by its `model_type`: `vision: {type: lookupvit}`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput, can_return_tuple

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.encoders.configuration import EncoderConfig

#: Buffers of batch norms.
_STATISTICS = {"running_mean": init.zeros_, "running_var": init.ones_, "num_batches_tracked": init.zeros_}


@dataclass
class EncoderOutput(ModelOutput):
    """Tokens of a batch of images.

    Args:
        last_hidden_state: `(B, rows * columns, D)`, row-major, of the output grid and nothing else.
        hidden_states: With `output_hidden_states=True`: the tokens before the first block and after every block, the
            last of them being `last_hidden_state`. Their number N may change from block to block, and in encoders with
            stages their width too.
        prefix_tokens: `(B, P, D)`, tokens without a place in the image ([CLS], registers), normalized as the last
            hidden state is; None where an encoder has none.
    """

    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    prefix_tokens: Tensor | None = None


class Encoder(PreTrainedModel, ABC):
    """An encoder of images, as a model of `transformers`.

    Subclasses set `config_class`, `title` and `paper`, create their layers in `__init__`, which ends in `post_init`,
    and implement `encode`. Attention goes through `foveate.models.encoders.layers.Attention`, so that SDPA and
    FlashAttention are chosen as for any model; blocks derive from `GradientCheckpointingLayer`.
    """

    config: Any
    base_model_prefix = "encoder"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # ty: ignore[invalid-assignment]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    #: Title of the paper.
    title: ClassVar[str]
    #: "arXiv 2407.12753".
    paper: ClassVar[str] = ""
    #: Parts of names of the authors' weights in a checkpoint of a whole LLaVA, as regular expressions, with those here.
    #: Several names share the rows of one weight evenly.
    released_keys: ClassVar[Mapping[str, str | tuple[str, ...]]] = {}
    #: The authors' name of a list of positions `(1, N, D)`, which is the table `positions.weight` here.
    released_positions: ClassVar[str] = ""

    @can_return_tuple
    def forward(self, pixel_values: Tensor, output_hidden_states: bool | None = None, **options: Any) -> EncoderOutput:
        """Encode a batch of images of one size.

        Args:
            pixel_values: `(B, C, H, W)`.
            output_hidden_states: Also return the tokens before and after every block.
            **options: Those of the encoder.

        Raises:
            FoveateError: The encoder cannot read images of this shape.
        """
        channels = self.config.num_channels
        if pixel_values.ndim != 4 or pixel_values.shape[1] != channels:
            raise FoveateError(
                f"the encoder {self.config.model_type} reads images (B, {channels}, H, W), not a tensor of shape "
                f"{tuple(pixel_values.shape)}."
            )
        height, width = pixel_values.shape[-2:]
        grid = self.config.output_grid(height, width)
        if output_hidden_states is None:
            output_hidden_states = bool(self.config.output_hidden_states)
        hidden_states: list[Tensor] | None = [] if output_hidden_states else None
        output = self.encode(pixel_values.to(self.dtype), grid, hidden_states, **options)
        if hidden_states is not None and output.last_hidden_state is not None:
            output.hidden_states = (*hidden_states[:-1], output.last_hidden_state)
        return output

    @abstractmethod
    def encode(
        self, pixel_values: Tensor, grid: Grid, hidden_states: list[Tensor] | None, **options: Any
    ) -> EncoderOutput:
        """Encode images of a checked shape.

        Args:
            pixel_values: `(B, C, H, W)` in the dtype of the weights.
            grid: Of the output.
            hidden_states: Where given, append the tokens `(B, N, D)` before the first block and after every block.
            **options: Those of the encoder.
        """

    def _initialize_weights(self, module: nn.Module, *_: bool) -> None:
        # For classes outside its own package, transformers skips modules without parameters of their own. That guards
        # against initializations that overwrite loaded weights; these do not.
        super()._initialize_weights(module, False)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            init.normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            for name, initialize in _STATISTICS.items():
                if (statistic := getattr(module, name, None)) is not None:
                    initialize(statistic)
        elif isinstance(module, nn.RMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, SelfInitialized):  # children are initialized before their parents
            module.reset_parameters(std)


class SelfInitialized(nn.Module, ABC):
    """A module with parameters that no layer of torch initializes."""

    @abstractmethod
    def reset_parameters(self, std: float) -> None:
        """Initialize them by `transformers.initialization`, which leaves loaded weights as they are."""


__all__ = ["Encoder", "EncoderConfig", "EncoderOutput", "SelfInitialized"]
