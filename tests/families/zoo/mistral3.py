"""Mistral 3, with a text token at the end of every row of an image."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Mistral3Config, Mistral3ForConditionalGeneration, MistralConfig, PixtralVisionConfig

from tests.families.zoo import END, IMAGE, SPREAD, Rows, conversation, image_seeds, llama, pixels

BREAK = 115
UNIT = 8  # pixels of a token: 2 x 2 patches of 4 x 4


def mistral3() -> Mistral3ForConditionalGeneration:
    """A Pixtral tower and Mistral."""
    tower = PixtralVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=64,
        patch_size=4,
        initializer_range=SPREAD,
    )
    config = Mistral3Config(
        vision_config=tower,
        text_config=MistralConfig(**llama(head_dim=8, sliding_window=None)),
        image_token_index=IMAGE,
        spatial_merge_size=2,
    )
    return Mistral3ForConditionalGeneration(config)


MODELS = {"mistral3": mistral3}
FAMILY: dict[str, str] = {}


def prompts(model: Any, rows: Rows, side: str = "left", seed: int = 0) -> dict[str, Any]:
    """Images of rows x columns tokens."""

    def tokens_of(size: tuple[int, int]) -> list[int]:
        return [*([*[IMAGE] * size[1], BREAK] * size[0])[:-1], END]

    inputs = conversation(rows, tokens_of, seed, side)
    images = [(own, (UNIT * height, UNIT * width)) for own, (height, width) in image_seeds(rows, seed)]
    if images:
        sizes = [size for _, size in images]
        padded = torch.zeros(len(images), 3, max(h for h, _ in sizes), max(w for _, w in sizes))
        for place, (own, (height, width)) in enumerate(images):
            padded[place, :, :height, :width] = pixels(own, 3, height, width)
        inputs |= {"pixel_values": padded, "image_sizes": torch.tensor(sizes)}
    return inputs
