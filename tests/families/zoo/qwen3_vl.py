"""Qwen3-VL, with two DeepStack planes."""

from __future__ import annotations

from typing import Any

from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from tests.families.zoo import SPREAD, llama
from tests.families.zoo.qwen2_vl import SPECIAL, prompts

ROPE = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0, "mrope_interleaved": True}
TOWER = {
    "depth": 3,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_heads": 2,
    "patch_size": 4,
    "out_hidden_size": 32,
    "num_position_embeddings": 16,
    "initializer_range": SPREAD,
}


def qwen3() -> Qwen3VLForConditionalGeneration:
    """Planes of the first two blocks, for the first two of three layers."""
    vision = {**TOWER, "deepstack_visual_indexes": [0, 1]}
    text: dict[str, Any] = llama(head_dim=8, num_hidden_layers=3, rope_parameters=ROPE)
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision, **SPECIAL))


MODELS = {"qwen3-vl": qwen3}
FAMILY: dict[str, str] = {}
__all__ = ["FAMILY", "MODELS", "prompts"]
