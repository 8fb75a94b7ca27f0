"""Base class of encoders with a classifier, which is what several papers trained and published."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import can_return_tuple

from foveate.models.encoders.encoder import Encoder


class EncoderForImageClassification(PreTrainedModel, ABC):
    """An encoder, as `encoder`, with a classifier on its output.

    Subclasses set `config_class` and `encoder_class`, create the layers of the classifier in `__init__`, which ends
    with `self.post_init()`, and implement `classify`.
    """

    base_model_prefix = "encoder"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    #: The Trainer divides the mean over a batch by the batches of a step, and gives `forward` no number of items.
    accepts_loss_kwargs = False
    encoder_class: ClassVar[type[Encoder]]

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.encoder = self.encoder_class(config)

    @abstractmethod
    def classify(self, output: Any) -> Tensor:
        """Map the output of the encoder to logits `(B, classes)`."""

    @can_return_tuple
    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **options: Any) -> ImageClassifierOutput:
        """Classify a batch of images.

        Args:
            pixel_values: `(B, C, H, W)`.
            labels: `(B,)` classes, for the loss.
            **options: Those of the encoder.
        """
        output = self.encoder(pixel_values, **options)
        logits = self.classify(output)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return self.output_of(output, loss, logits)

    def output_of(self, output: Any, loss: Tensor | None, logits: Tensor) -> ImageClassifierOutput:
        """The output of the model, from that of its encoder."""
        return ImageClassifierOutput(loss=loss, logits=logits, hidden_states=output.hidden_states)
