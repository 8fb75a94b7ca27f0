"""Qwen2-VL and Qwen2.5-VL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from tests.families.zoo import END, IMAGE, SPREAD, START, VIDEO, Rows, conversation, image_seeds, llama, pixels

Clips = Sequence[Sequence[tuple[int, ...]]]

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


#: Models in whose prompts the frames of a clip stand apart, with text (a time) before each.
FRAMES_APART = ("qwen3_vl", "qwen3_5", "glm4v", "glm46v")


def prompts(model: Any, rows: Clips, side: str = "left", seed: int = 0) -> dict[str, Any]:
    """Images of (rows, columns) tokens, each of 2 x 2 patches of 4 x 4 pixels; clips of (frames, rows, columns)."""
    kind = model.config.model_type

    def tokens_of(size: tuple[int, ...]) -> list[int]:
        *clip, height, width = size
        token = VIDEO if clip and not kind.startswith("glm") else IMAGE
        frames = clip[0] if clip else 1
        if kind in FRAMES_APART:
            return [*[7] * len(clip), START, *[token] * (height * width), END] * frames
        return [START, *[token] * (frames * height * width), END]

    inputs = conversation(cast("Rows", rows), tokens_of, seed, side)
    inputs["mm_token_type_ids"] = types = (inputs["input_ids"] == IMAGE).int() + 2 * (
        inputs["input_ids"] == VIDEO
    ).int()
    items = [(own, (1, *size)[-3:], len(size) == 3) for own, size in image_seeds(cast("Rows", rows), seed)]
    for video, name, grid in (
        (False, "pixel_values", "image_grid_thw"),
        (True, "pixel_values_videos", "video_grid_thw"),
    ):
        chosen = [
            (own, (frames, 2 * height, 2 * width)) for own, (frames, height, width), clip in items if clip == video
        ]
        if chosen:
            inputs[name] = torch.cat([pixels(own, frames * h * w, 3 * 2 * 4 * 4) for own, (frames, h, w) in chosen])
            inputs[grid] = torch.tensor([size for _, size in chosen])
    if kind.startswith("glm") and "video_grid_thw" in inputs:
        types *= 2  # frames of clips have the placeholder of images
    return inputs
