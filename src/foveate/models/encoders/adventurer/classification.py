"""Adventurer with a classifier, which is what the authors published."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AutoModelForImageClassification

from foveate.models.encoders.adventurer.configuration import AdventurerConfig
from foveate.models.encoders.adventurer.modeling import AdventurerModel
from foveate.models.encoders.classification import EncoderForImageClassification


class AdventurerForImageClassification(EncoderForImageClassification):
    """An [`AdventurerModel`] with a linear layer on [CLS], the last token."""

    config_class = AdventurerConfig
    encoder_class = AdventurerModel

    def __init__(self, config: AdventurerConfig) -> None:
        super().__init__(config)
        num_labels: Any = config.num_labels
        self.classifier = nn.Linear(config.hidden_size, num_labels)
        self.post_init()

    def classify(self, output: Any) -> Tensor:
        """See `EncoderForImageClassification.classify`."""
        return self.classifier(output.prefix_tokens[:, 0])


AutoModelForImageClassification.register(AdventurerConfig, AdventurerForImageClassification, exist_ok=True)
