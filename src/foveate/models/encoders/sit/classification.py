"""SiT with a classifier, which is what the authors train by distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import AutoModelForImageClassification
from transformers.modeling_outputs import ImageClassifierOutput

from foveate.core.errors import FoveateError
from foveate.models.encoders.classification import EncoderForImageClassification
from foveate.models.encoders.sit.configuration import SiTConfig
from foveate.models.encoders.sit.modeling import SiTModel


@dataclass
class SiTClassifierOutput(ImageClassifierOutput):
    """Output of a [`SiTForImageClassification`].

    Args:
        recovered_tokens: See `SiTOutput`.
    """

    recovered_tokens: tuple[Tensor, ...] | None = None


class SiTForImageClassification(EncoderForImageClassification):
    """A [`SiTModel`] with a linear layer on [CLS].

    `frd_loss` trains it with a teacher, which is the same class with `slimming=False`; `labels` alone give cross
    entropy.
    """

    config_class = SiTConfig
    encoder_class = SiTModel
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: SiTConfig) -> None:
        super().__init__(config)
        num_labels: Any = config.num_labels
        self.classifier = nn.Linear(config.hidden_size, num_labels)
        self.post_init()

    def classify(self, output: Any) -> Tensor:
        """See `EncoderForImageClassification.classify`."""
        return self.classifier(output.prefix_tokens[:, 0])

    def output_of(self, output: Any, loss: Tensor | None, logits: Tensor) -> SiTClassifierOutput:
        """See `EncoderForImageClassification.output_of`."""
        return SiTClassifierOutput(
            loss=loss,
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
