"""LLaVA-1.5 with a CLIP tower, and with a SigLIP tower, which has no [CLS]."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

from tests.families.zoo import IMAGE, SPREAD, Rows, conversation, image_seeds, llama, pixels

TOWER = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "image_size": 56,
    "patch_size": 14,
    "initializer_range": SPREAD,
    "initializer_factor": 1.0,
}
TOKENS = 16


def _model(tower: Any, strategy: str) -> LlavaForConditionalGeneration:
    config = LlavaConfig(
        vision_config=tower,
        text_config=LlamaConfig(**llama()),
        image_token_id=IMAGE,
        vision_feature_select_strategy=strategy,
        image_seq_length=TOKENS,
    )
    return LlavaForConditionalGeneration(config)


MODELS = {
    "llava": lambda: _model(CLIPVisionConfig(**TOWER, projection_dim=24), "default"),
    "llava-siglip": lambda: _model(SiglipVisionConfig(**TOWER), "full"),
}
FAMILY = {"llava-siglip": "llava"}


def prompts(model: Any, rows: Rows, side: str = "left", seed: int = 0) -> dict[str, Any]:
    """Every image has 4 x 4 tokens."""
    inputs = conversation(rows, lambda size: [IMAGE] * TOKENS, seed, side)
    images = [pixels(own, 3, 56, 56) for own, _ in image_seeds(rows, seed)]
    return inputs | ({"pixel_values": torch.stack(images)} if images else {})
