"""SiT with a classifier, which is what the authors train by distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForImageClassification
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import can_return_tuple

from foveate.core.errors import FoveateError
from foveate.models.encoders.sit.configuration import SiTConfig
from foveate.models.encoders.sit.modeling import SiTModel


@dataclass
class SiTClassifierOutput(ImageClassifierOutput):
    """Output of a [`SiTForImageClassification`].

    Args:
        recovered_tokens: See `SiTOutput`.
    """

    recovered_tokens: tuple[Tensor, ...] | None = None


class SiTForImageClassification(PreTrainedModel):
    """A [`SiTModel`] with a linear layer on [CLS].

    `frd_loss` trains it with a teacher, which is the same class with `slimming=False`; `labels` alone give cross
    entropy.
    """

    config_class = SiTConfig
    base_model_prefix = "encoder"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: SiTConfig) -> None:
        super().__init__(config)
        self.encoder = SiTModel(config)
        num_labels: Any = config.num_labels
        self.classifier = nn.Linear(config.hidden_size, num_labels)
        self.post_init()

    @can_return_tuple
    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **options: Any) -> SiTClassifierOutput:
        """Classify a batch of images.

        Args:
            pixel_values: `(B, C, H, W)`.
            labels: `(B,)` classes, for the loss.
            **options: Those of `SiTModel`, such as `output_recovered`.
        """
        output = self.encoder(pixel_values, **options)
        logits = self.classifier(output.prefix_tokens[:, 0])
        return SiTClassifierOutput(
            loss=None if labels is None else F.cross_entropy(logits, labels),
            logits=logits,
            hidden_states=output.hidden_states,
            recovered_tokens=output.recovered_tokens,
        )


def read_outputs(output: SiTClassifierOutput, whose: str) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Logits and recovered tokens of an output.

    Raises:
        FoveateError: It lacks one of them.
    """
    if output.logits is None or output.recovered_tokens is None:
        raise FoveateError(f"the output of the {whose} lacks recovered_tokens: call it with output_recovered=True.")
    return output.logits, output.recovered_tokens


AutoModelForImageClassification.register(SiTConfig, SiTForImageClassification, exist_ok=True)
