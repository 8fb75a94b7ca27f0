"""Small random models of the families whose vision towers can be converted."""

import torch
from torch import nn
from transformers import (
    Kimi_K25Config,
    Kimi_K25ForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Siglip2Config,
    Siglip2Model,
)

PATCH = 6
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}
ROPE = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}


def kimi() -> nn.Module:
    text = {
        **TEXT,
        "model_type": "deepseek_v3",
        "n_routed_experts": 4,
        "moe_intermediate_size": 8,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 8,
        "first_k_dense_replace": 1,
    }
    vision = {
        "patch_size": PATCH,
        "pos_emb_height": 8,
        "pos_emb_width": 8,
        "num_attention_heads": 2,
        "num_hidden_layers": 4,
        "hidden_size": 32,
        "intermediate_size": 48,
    }
    return Kimi_K25ForConditionalGeneration(
        Kimi_K25Config(text_config=text, vision_config=vision, projection_hidden_size=32)
    )


def siglip2() -> nn.Module:
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2}
    vision = {**shape, "patch_size": PATCH, "num_patches": 64}
    return Siglip2Model(Siglip2Config(vision_config=vision, text_config={**shape, "vocab_size": 64}))


def qwen2_vl() -> nn.Module:
    vision = {"depth": 4, "embed_dim": 32, "hidden_size": 16, "mlp_ratio": 2, "num_heads": 2, "patch_size": PATCH}
    text = {**TEXT, "rope_parameters": ROPE}
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision))


def qwen2_5_vl() -> nn.Module:
    vision = {
        "depth": 4,
        "hidden_size": 32,
        "out_hidden_size": 16,
        "intermediate_size": 44,
        "num_heads": 2,
        "patch_size": PATCH,
        "window_size": 8 * PATCH,
        "fullatt_block_indexes": [1, 3],
    }
    text = {**TEXT, "rope_parameters": ROPE}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))


FAMILIES = {"kimi": kimi, "siglip2": siglip2, "qwen2_vl": qwen2_vl, "qwen2_5_vl": qwen2_5_vl}


def build(family: str) -> nn.Module:
    """A whole model with every parameter random, so that no bias or norm could be forgotten unnoticed."""
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def tower_of(model: nn.Module) -> nn.Module:
    """The vision tower of one of the models above."""
    for path in ("model.vision_tower", "vision_model", "model.visual"):
        tower = model
        for name in path.split("."):
            tower = getattr(tower, name, None)
        if tower is not None:
            return tower
    raise AssertionError(type(model))
