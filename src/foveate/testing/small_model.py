"""A small LLaVA with random weights, and prompts with images for it."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

#: Size of the vocabulary, the first id that is no text, the placeholder of an image token, and tokens of an image.
VOCABULARY, TEXT, PLACEHOLDER, TOKENS = 120, 100, 119, 16
#: Of an image in pixels.
SIDE = 56


def llava(encoder: Literal["clip", "siglip"] = "clip") -> LlavaForConditionalGeneration:
    """LLaVA-1.5 in small: an encoder of four blocks with or without [CLS], 4 x 4 tokens an image, two layers."""
    shape: dict[str, Any] = {
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "image_size": SIDE,
        "patch_size": 14,
        "initializer_range": 0.2,  # large, so that logits depend on every input
        "initializer_factor": 1.0,
    }
    clip = encoder == "clip"
    text = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**shape, projection_dim=24) if clip else SiglipVisionConfig(**shape),
        text_config=text,
        image_token_index=PLACEHOLDER,
        vision_feature_select_strategy="default" if clip else "full",
        image_seq_length=TOKENS,
    )
    return LlavaForConditionalGeneration(config)


@cache
def small_model() -> LlavaForConditionalGeneration:
    """`llava()` with the same weights every time, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = llava().eval()
    with torch.no_grad():  # trained models never answer with the placeholder of an image
        model.get_output_embeddings().weight[TEXT:] = 0
    return model


def small_prompts(*images: int) -> dict[str, Tensor]:
    """Inputs of prompts with so many images each (1 and 2 by default), text around them, padded on the left."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for count in images or (1, 2):
        row = torch.randint(1, TEXT, (2 + count,), generator=generator).tolist()
        for _ in range(count):
            row += [PLACEHOLDER] * TOKENS + torch.randint(1, TEXT, (3,), generator=generator).tolist()
        rows.append(row)
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    for row, tokens in zip(ids, rows, strict=True):
        row[len(row) - len(tokens) :] = torch.tensor(tokens)
    pixels = torch.randn(sum(images or (1, 2)), 3, SIDE, SIDE, generator=generator)
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "pixel_values": pixels}
