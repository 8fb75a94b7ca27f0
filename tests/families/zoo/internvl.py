"""InternVL 3: large images are three tiles, one after another."""

from __future__ import annotations

from typing import Any

import torch
from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig, Qwen2Config

from tests.families.zoo import END, IMAGE, SPREAD, START, Rows, conversation, image_seeds, llama, pixels

TOKENS = 16


def internvl() -> InternVLForConditionalGeneration:
    """Eight by eight patches a tile, of which two by two become one token."""
    tower = InternVLVisionConfig(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=3,
        image_size=32,
        patch_size=4,
        initializer_range=SPREAD,
        layer_scale_init_value=1.0,
    )
    config = InternVLConfig(
        vision_config=tower,
        text_config=Qwen2Config(**llama()),
        image_token_id=IMAGE,
        image_seq_length=TOKENS,
        tie_word_embeddings=False,
    )
    model = InternVLForConditionalGeneration(config)
    embeddings: Any = model.model.vision_tower.embeddings
    torch.nn.init.normal_(embeddings.cls_token, std=SPREAD)
    torch.nn.init.normal_(embeddings.position_embeddings, std=SPREAD)
    return model


MODELS = {"internvl": internvl}
FAMILY: dict[str, str] = {}


def tiles(size: tuple[int, int]) -> int:
    """An image of more than twelve units has two tiles and a thumbnail."""
    return 3 if size[0] * size[1] > 12 else 1


def prompts(model: Any, rows: Rows, side: str = "left", seed: int = 0) -> dict[str, Any]:
    """Every tile has 4 x 4 tokens."""
    inputs = conversation(rows, lambda size: [START, *[IMAGE] * (tiles(size) * TOKENS), END], seed, side)
    images = [pixels(own, tiles(size), 3, 32, 32) for own, size in image_seeds(rows, seed)]
    return inputs | ({"pixel_values": torch.cat(images)} if images else {})
