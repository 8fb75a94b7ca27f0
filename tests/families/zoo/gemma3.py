"""Gemma 3, whose first layer has a sliding window that is shorter than the prompts."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3TextConfig, SiglipVisionConfig

from tests.families.zoo import END, IMAGE, SPREAD, START, Rows, conversation, image_seeds, llama, pixels

TOKENS = 9


def gemma3() -> Gemma3ForConditionalGeneration:
    """Six by six patches, of which two by two become one token."""
    tower = SiglipVisionConfig(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=3,
        image_size=48,
        patch_size=8,
        initializer_range=SPREAD,
        vision_use_head=False,
    )
    layers = ["sliding_attention", "full_attention"]
    config = Gemma3Config(
        text_config=Gemma3TextConfig(
            **llama(head_dim=8, sliding_window=12, query_pre_attn_scalar=8, layer_types=layers)
        ),
        vision_config=tower,
        mm_tokens_per_image=TOKENS,
        image_token_index=IMAGE,
        boi_token_index=START,
        eoi_token_index=END,
        tie_word_embeddings=False,
    )
    model = Gemma3ForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=SPREAD)
    return model


MODELS = {"gemma3": gemma3}
FAMILY: dict[str, str] = {}


def prompts(model: Any, rows: Rows, side: str = "left", seed: int = 0) -> dict[str, Any]:
    """Every image has 3 x 3 tokens."""
    inputs = conversation(rows, lambda size: [START, *[IMAGE] * TOKENS, END], seed, side)
    inputs["token_type_ids"] = (inputs["input_ids"] == IMAGE).long()
    images = [pixels(own, 3, 48, 48) for own, _ in image_seeds(rows, seed)]
    return inputs | ({"pixel_values": torch.stack(images)} if images else {})
