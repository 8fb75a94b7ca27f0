"""MiniCPM-V 4.6: a merger after the first of three blocks, one after the last, and the text part of Qwen3.5."""

from __future__ import annotations

from typing import Any

import torch
from transformers import MiniCPMV4_6Config, MiniCPMV4_6ForConditionalGeneration, Qwen3_5TextConfig

from tests.families.zoo import END, IMAGE, SPREAD, START, VIDEO, Rows, conversation, image_seeds, pixels
from tests.families.zoo.qwen3_5 import text_fields


def minicpm() -> MiniCPMV4_6ForConditionalGeneration:
    """MiniCPM-V 4.6."""
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 4,
        "initializer_range": SPREAD,
    }
    config = MiniCPMV4_6Config(
        text_config=Qwen3_5TextConfig(**text_fields()),
        vision_config=vision,
        insert_layer_id=0,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
    )
    return MiniCPMV4_6ForConditionalGeneration(config)


MODELS = {"minicpm-v-4.6": minicpm}
FAMILY: dict[str, str] = {}


def prompts(model: Any, rows: Rows, side: str = "left", seed: int = 0) -> dict[str, Any]:
    """Images of rows x columns tokens, each of 4 x 4 patches of 4 x 4 pixels, in one strip."""
    inputs = conversation(rows, lambda size: [START, *[IMAGE] * (size[0] * size[1]), END], seed, side)
    images = image_seeds(rows, seed)
    if images:
        strips = [pixels(own, 1, 3, 4, 16 * height * width * 4) for own, (height, width) in images]
        inputs["pixel_values"] = torch.cat(strips, dim=-1)
        inputs["target_sizes"] = torch.tensor([(4 * height, 4 * width) for _, (height, width) in images])
    return inputs
