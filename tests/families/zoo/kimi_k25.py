"""Kimi K2.5: a MoonViT and a text part of the shape of DeepSeek-V3, with one dense layer and one of experts."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DeepseekV3Config, Kimi_K25Config, Kimi_K25ForConditionalGeneration

from tests.families.zoo import END, IMAGE, SPREAD, START, VIDEO, Rows, conversation, image_seeds, llama, pixels

SPECIAL = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END}
EXPERTS = {
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}


def kimi() -> Kimi_K25ForConditionalGeneration:
    """Kimi K2.5."""
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "patch_size": 4,
        "pos_emb_height": 4,
        "pos_emb_width": 4,
        "initializer_range": SPREAD,
    }
    text = DeepseekV3Config(**llama(num_key_value_heads=4, tie_word_embeddings=False, **EXPERTS))
    config = Kimi_K25Config(
        text_config=text, vision_config=vision, projection_hidden_size=16, tie_word_embeddings=False, **SPECIAL
    )
    model = Kimi_K25ForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.vision_tower.patch_embed.pos_emb.position_embeddings, std=SPREAD)
    return model


MODELS = {"kimi-k2.5": kimi}
FAMILY: dict[str, str] = {}


def prompts(model: Any, rows: Rows, side: str = "left", seed: int = 0) -> dict[str, Any]:
    """Images of rows x columns tokens, each of 2 x 2 patches of 4 x 4 pixels, row-major."""
    inputs = conversation(rows, lambda size: [START, *[IMAGE] * (size[0] * size[1]), END], seed, side)
    images = image_seeds(rows, seed)
    if images:
        inputs["pixel_values"] = torch.cat(
            [pixels(own, 4 * height * width, 3, 4, 4) for own, (height, width) in images]
        )
        inputs["image_grid_thw"] = torch.tensor([(1, 2 * height, 2 * width) for _, (height, width) in images])
    return inputs
