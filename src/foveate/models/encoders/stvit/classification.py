"""STViT with a classifier, which is what the authors published."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForImageClassification

from foveate.models.encoders.classification import EncoderForImageClassification
from foveate.models.encoders.stvit.configuration import STViTConfig
from foveate.models.encoders.stvit.modeling import STViTModel


class STViTForImageClassification(EncoderForImageClassification):
    """A [`STViTModel`] whose tokens are projected, normalized over the batch and pooled before a linear layer."""

    config_class = STViTConfig
    encoder_class = STViTModel
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: STViTConfig) -> None:
        super().__init__(config)
        num_labels: Any = config.num_labels
        self.projection = nn.Conv2d(config.hidden_sizes[-1], config.projection_size, 1)
        self.norm = nn.BatchNorm2d(config.projection_size)
        self.classifier = nn.Linear(config.projection_size, num_labels)
        self.post_init()

    def classify(self, output: Any) -> Tensor:
        """See `EncoderForImageClassification.classify`."""
        projected = self.projection(output.last_hidden_state.mT[..., None])  # tokens as a raster of one column
        return self.classifier(F.silu(self.norm(projected)).mean((2, 3)))


AutoModelForImageClassification.register(STViTConfig, STViTForImageClassification, exist_ok=True)
