"""A tiny next-scale model for tests."""

from __future__ import annotations

from typing import Any

import torch

from foveate.models.next_scale import NextScaleConfig, NextScaleForImageGeneration


def small_config(**fields: Any) -> NextScaleConfig:
    given: dict[str, Any] = {
        "image_size": 16,
        "scales": [1, 2, 3, 4],
        "codebook_size": 11,
        "code_size": 3,
        "tokenizer_width": 4,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_classes": 5,
        # Large enough for heads and layers that differ.
        "initializer_range": 0.3,
    }
    return NextScaleConfig(**given | fields)


def small_model(**fields: Any) -> NextScaleForImageGeneration:
    torch.manual_seed(0)
    return NextScaleForImageGeneration(small_config(**fields)).eval()
