"""GLM-4.1V and GLM-4.6V."""

from __future__ import annotations

from transformers import Glm4vConfig, Glm4vForConditionalGeneration, Glm46VConfig, Glm46VForConditionalGeneration

from tests.families.zoo import END, IMAGE, SPREAD, START, VIDEO, llama
from tests.families.zoo.qwen2_vl import prompts

SPECIAL = {"image_token_id": IMAGE, "video_token_id": VIDEO, "image_start_token_id": START, "image_end_token_id": END}
SPECIAL |= {"video_start_token_id": 115, "video_end_token_id": 114}
TOWER = {
    "depth": 3,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_heads": 2,
    "patch_size": 4,
    "image_size": 16,
    "out_hidden_size": 32,
    "initializer_range": SPREAD,
}
ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0, "partial_rotary_factor": 1.0}


def glm41() -> Glm4vForConditionalGeneration:
    """GLM-4.1V."""
    text = llama(rope_parameters=ROPE)
    return Glm4vForConditionalGeneration(Glm4vConfig(text_config=text, vision_config=TOWER, **SPECIAL))


def glm46() -> Glm46VForConditionalGeneration:
    """GLM-4.6V: the parts of GLM-4.1V under another name."""
    text = {**llama(rope_parameters=ROPE), "model_type": "glm4v_text"}
    vision = {**TOWER, "model_type": "glm4v_vision"}
    return Glm46VForConditionalGeneration(Glm46VConfig(text_config=text, vision_config=vision, **SPECIAL))


MODELS = {"glm-4v": glm41, "glm-4.6v": glm46}
FAMILY = {"glm-4.6v": "glm-4v"}
__all__ = ["FAMILY", "MODELS", "prompts"]
