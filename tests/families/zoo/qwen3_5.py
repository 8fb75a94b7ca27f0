"""Qwen3.5: layers of linear attention and one of full attention."""

from __future__ import annotations

from typing import Any

from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

from tests.families.zoo import llama
from tests.families.zoo.qwen2_vl import SPECIAL, prompts
from tests.families.zoo.qwen3_vl import TOWER

ROPE = {
    "rope_type": "default",
    "mrope_section": [2, 1, 1],
    "rope_theta": 10000.0,
    "mrope_interleaved": True,
    "partial_rotary_factor": 1.0,
}
LINEAR = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_conv_kernel_dim": 4,
}


def text_fields() -> dict[str, Any]:
    """The text part; MiniCPM-V 4.6 has it too."""
    layers = ["linear_attention", "full_attention", "linear_attention"]
    return llama(head_dim=8, num_hidden_layers=3, layer_types=layers, rope_parameters=ROPE, **LINEAR)


def qwen35() -> Qwen3_5ForConditionalGeneration:
    """The encoder of Qwen3-VL, without DeepStack."""
    config = Qwen3_5Config(text_config=text_fields(), vision_config=TOWER, **SPECIAL)
    return Qwen3_5ForConditionalGeneration(config)


MODELS = {"qwen3.5": qwen35}
FAMILY: dict[str, str] = {}
__all__ = ["FAMILY", "MODELS", "prompts"]
