"""Our LLaVA-UHD with two stages among three blocks, and once more with windows."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Qwen2Config

from foveate.models.llava_uhd import LlavaUHDConfig, LlavaUHDForConditionalGeneration
from foveate.models.vit_uhd import ViTUHDConfig
from tests.families.zoo import IMAGE, SPREAD, Rows, conversation, image_seeds, llama, pixels


def _model(**fields: Any) -> LlavaUHDForConditionalGeneration:
    vision = ViTUHDConfig(
        patch_size=4,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        merger_layer_index=[0, 1],
        init_pos_emb_height=4,
        init_pos_emb_width=4,
        initializer_range=SPREAD,
        **fields,
    )
    text = Qwen2Config(**llama())
    return LlavaUHDForConditionalGeneration(
        LlavaUHDConfig(vision_config=vision, text_config=text, image_token_id=IMAGE)
    )


MODELS = {"llava-uhd": _model, "llava-uhd-windows": lambda: _model(window_size=3, full_attention_layers=[1])}
FAMILY = {"llava-uhd-windows": "llava-uhd"}


def prompts(model: Any, rows: Rows, side: str = "left", seed: int = 0) -> dict[str, Any]:
    """Images of rows x columns tokens, each of 4 x 4 patches of 4 x 4 pixels, row-major."""
    inputs = conversation(rows, lambda size: [IMAGE] * (size[0] * size[1]), seed, side)
    images = image_seeds(rows, seed)
    if images:
        values = [pixels(own, 16 * height * width, 3, 4, 4) for own, (height, width) in images]
        inputs["pixel_values"] = torch.cat(values)
        inputs["grid_hws"] = torch.tensor([(4 * height, 4 * width) for _, (height, width) in images])
    return inputs
