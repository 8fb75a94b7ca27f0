"""Adventurer with a classifier, which is what the authors published."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForImageClassification
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import can_return_tuple

from foveate.models.encoders.adventurer.configuration import AdventurerConfig
from foveate.models.encoders.adventurer.modeling import AdventurerModel


class AdventurerForImageClassification(PreTrainedModel):
    """An [`AdventurerModel`] with a linear layer on [CLS], the last token."""

    config_class = AdventurerConfig
    base_model_prefix = "encoder"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True

    def __init__(self, config: AdventurerConfig) -> None:
        super().__init__(config)
        self.encoder = AdventurerModel(config)
        num_labels: Any = config.num_labels
        self.classifier = nn.Linear(config.hidden_size, num_labels)
        self.post_init()

    @can_return_tuple
    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **options: Any) -> ImageClassifierOutput:
        """Classify a batch of images.

        Args:
            pixel_values: `(B, C, H, W)`.
            labels: `(B,)` classes, for the loss.
            **options: Those of `AdventurerModel`.
        """
        output = self.encoder(pixel_values, **options)
        logits = self.classifier(output.prefix_tokens[:, 0])
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits, hidden_states=output.hidden_states)


AutoModelForImageClassification.register(AdventurerConfig, AdventurerForImageClassification, exist_ok=True)
