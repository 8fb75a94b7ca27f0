"""PaliGemma on Gemma, and PaliGemma 2 on Gemma 2, whose first layer has a sliding window."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    Gemma2Config,
    GemmaConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    SiglipVisionConfig,
)

from tests.families.zoo import IMAGE, SPREAD, VOCABULARY, Rows, conversation, image_seeds, llama, pixels

TOKENS = 16


def _model(text: Any) -> PaliGemmaForConditionalGeneration:
    tower = SiglipVisionConfig(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=3,
        image_size=56,
        patch_size=14,
        initializer_range=SPREAD,
        vision_use_head=False,
    )
    config = PaliGemmaConfig(
        vision_config=tower,
        text_config=text,
        image_token_index=IMAGE,
        vocab_size=VOCABULARY,
        projection_dim=32,
        hidden_size=32,
        tie_word_embeddings=False,
    )
    return PaliGemmaForConditionalGeneration(config)


MODELS = {
    "paligemma": lambda: _model(GemmaConfig(**llama(head_dim=8))),
    "paligemma2": lambda: _model(
        Gemma2Config(**llama(head_dim=8, sliding_window=12, query_pre_attn_scalar=8, final_logit_softcapping=None))
    ),
}
FAMILY = {"paligemma2": "paligemma"}


def prompts(model: Any, rows: Rows, side: str = "left", seed: int = 0) -> dict[str, Any]:
    """Every image has 4 x 4 tokens; the whole prompt is prefix."""
    inputs = conversation(rows, lambda size: [IMAGE] * TOKENS, seed, side)
    inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    images = [pixels(own, 3, 56, 56) for own, _ in image_seeds(rows, seed)]
    return inputs | ({"pixel_values": torch.stack(images)} if images else {})
