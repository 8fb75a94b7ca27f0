"""STViT with a classifier, which is what the authors published."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForImageClassification
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import can_return_tuple

from foveate.models.encoders.stvit.configuration import STViTConfig
from foveate.models.encoders.stvit.modeling import STViTModel


class STViTForImageClassification(PreTrainedModel):
    """A [`STViTModel`] whose tokens are projected, normalized over the batch and pooled before a linear layer."""

    config_class = STViTConfig
    base_model_prefix = "encoder"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: STViTConfig) -> None:
        super().__init__(config)
        self.encoder = STViTModel(config)
        num_labels: Any = config.num_labels
        self.projection = nn.Conv2d(config.hidden_sizes[-1], config.projection_size, 1)
        self.norm = nn.BatchNorm2d(config.projection_size)
        self.classifier = nn.Linear(config.projection_size, num_labels)
        self.post_init()

    @can_return_tuple
    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **options: Any) -> ImageClassifierOutput:
        """Classify a batch of images.

        Args:
            pixel_values: `(B, C, H, W)`.
            labels: `(B,)` classes, for the loss.
            **options: Those of `STViTModel`.
        """
        output = self.encoder(pixel_values, **options)
        projected = self.projection(output.last_hidden_state.mT[..., None])  # tokens as a raster of one column
        logits = self.classifier(F.silu(self.norm(projected)).mean((2, 3)))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits, hidden_states=output.hidden_states)


AutoModelForImageClassification.register(STViTConfig, STViTForImageClassification, exist_ok=True)
