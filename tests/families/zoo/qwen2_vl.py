"""Qwen2-VL and Qwen2.5-VL."""

from __future__ import annotations

from typing import Any

import torch
from families.zoo import END, IMAGE, SPREAD, START, VIDEO, Rows, conversation, image_seeds, llama, pixels
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

SPECIAL = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END}
ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
TOWER = {"depth": 3, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}


def qwen2() -> Qwen2VLForConditionalGeneration:
    """Qwen2-VL."""
    vision = {**TOWER, "embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2, "initializer_range": SPREAD}
    text = llama(rope_parameters=ROPE)
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision, **SPECIAL))


def qwen25() -> Qwen2_5_VLForConditionalGeneration:
    """Qwen2.5-VL, with windows smaller than the images."""
    vision = {
        **TOWER,
        "hidden_size": 16,
        "out_hidden_size": 32,
        "intermediate_size": 24,
        "window_size": 16,
        "fullatt_block_indexes": [1, 2],
        "initializer_range": SPREAD,
    }
    text = llama(rope_parameters=ROPE)
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **SPECIAL))


MODELS = {"qwen2-vl": qwen2, "qwen2.5-vl": qwen25}
FAMILY: dict[str, str] = {}


def prompts(model: Any, rows: Rows, side: str = "left", seed: int = 0) -> dict[str, Any]:
    """Images of rows x columns tokens, each of 2 x 2 patches of 4 x 4 pixels."""

    def tokens_of(size: tuple[int, int]) -> list[int]:
        return [START, *[IMAGE] * (size[0] * size[1]), END]

    inputs = conversation(rows, tokens_of, seed, side)
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE).int()
    images = image_seeds(rows, seed)
    if images:
        values = [pixels(own, 4 * rows * columns, 3 * 2 * 4 * 4) for own, (rows, columns) in images]
        inputs["pixel_values"] = torch.cat(values)
        inputs["image_grid_thw"] = torch.tensor([(1, 2 * rows, 2 * columns) for _, (rows, columns) in images])
    return inputs
