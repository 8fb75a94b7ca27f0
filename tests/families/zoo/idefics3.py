"""Idefics3 and SmolVLM: large images are three tiles with text before each; tiles that are not full have a mask."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    LlamaConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from tests.families.zoo import END, IMAGE, PAD, SPREAD, START, Rows, conversation, image_seeds, llama, pixels
from tests.families.zoo.internvl import tiles

TOKENS = 16
TILE = 115
TOWER = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 32,
    "patch_size": 4,
    "initializer_range": SPREAD,
}


def _fields(kind: str) -> dict[str, Any]:
    return {
        "vision_config": {**TOWER, "model_type": kind},
        "text_config": LlamaConfig(**llama()),
        "image_token_id": IMAGE,
        "scale_factor": 2,
        "pad_token_id": PAD,
    }


def idefics3() -> Idefics3ForConditionalGeneration:
    """Eight by eight patches a tile, of which two by two become one token."""
    return Idefics3ForConditionalGeneration(Idefics3Config(**_fields("idefics3_vision")))


def smolvlm() -> SmolVLMForConditionalGeneration:
    """The same parts under another name."""
    return SmolVLMForConditionalGeneration(SmolVLMConfig(**_fields("smolvlm_vision")))


MODELS = {"idefics3": idefics3, "smolvlm": smolvlm}
FAMILY = {"smolvlm": "idefics3"}


def prompts(model: Any, rows: Rows, side: str = "left", seed: int = 0) -> dict[str, Any]:
    """Every tile has 4 x 4 tokens; the last rows of pixels of wide images are padding."""
    inputs = conversation(rows, lambda size: [*[START, TILE, *[IMAGE] * TOKENS] * tiles(size), END], seed, side)
    images = iter(image_seeds(rows, seed))
    most = max((sum(map(tiles, sizes)) for sizes in rows), default=0)
    if most:
        values = torch.zeros(len(rows), most, 3, 32, 32)
        mask = torch.zeros(len(rows), most, 32, 32, dtype=torch.int64)
        for row, sizes in enumerate(rows):
            place = 0
            for own, size in (next(images) for _ in sizes):
                high = 24 if size[0] < size[1] else 32
                values[row, place : place + tiles(size), :, :high] = pixels(own, tiles(size), 3, high, 32)
                mask[row, place : place + tiles(size), :high] = 1
                place += tiles(size)
        inputs |= {"pixel_values": values, "pixel_attention_mask": mask}
    return inputs
