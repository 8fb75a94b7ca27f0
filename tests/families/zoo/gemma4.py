"""Gemma 4: a small model with embeddings of every layer and shared keys; a larger one that sees images both ways."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from transformers import Gemma4Config, Gemma4ForConditionalGeneration

from tests.families.zoo import (
    END,
    IMAGE,
    SPREAD,
    START,
    VIDEO,
    VOCABULARY,
    Rows,
    conversation,
    image_seeds,
    llama,
    pixels,
)

ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 10000.0},
}
SPECIAL = {"image_token_id": IMAGE, "video_token_id": VIDEO, "boi_token_id": START, "eoi_token_id": END}
SIDE = 2  # patches of 4 x 4 pixels a token


def _model(**fields: Any) -> Gemma4ForConditionalGeneration:
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "patch_size": 4,
        "pooling_kernel_size": SIDE,
        "position_embedding_size": 64,
        "initializer_range": SPREAD,
    }
    text = llama(
        head_dim=8,
        global_head_dim=8,
        sliding_window=12,
        rope_parameters=ROPE,
        vocab_size_per_layer_input=VOCABULARY,
        tie_word_embeddings=False,
        **fields,
    )
    config = Gemma4Config(
        text_config=text,
        vision_config=vision,
        audio_config=None,
        audio_token_id=115,
        tie_word_embeddings=False,
        **SPECIAL,
    )
    model = Gemma4ForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.vision_tower.patch_embedder.position_embedding_table, std=SPREAD)
    return model


def small() -> Gemma4ForConditionalGeneration:
    """As E2B: the last layers have the keys of those before them, and every layer embeddings of its own."""
    layers = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    return _model(num_hidden_layers=4, layer_types=layers, num_kv_shared_layers=2, hidden_size_per_layer_input=8)


def large() -> Gemma4ForConditionalGeneration:
    """As 31B: in layers with windows the tokens of an image see each other."""
    layers = ["sliding_attention", "full_attention"]
    return _model(layer_types=layers, hidden_size_per_layer_input=0, use_bidirectional_attention="vision")


MODELS = {"gemma4": large, "gemma4-e": small}
FAMILY = {"gemma4-e": "gemma4"}


def prompts(model: Any, rows: Sequence[Sequence[tuple[int, ...]]], side: str = "left", seed: int = 0) -> dict[str, Any]:
    """Images of (rows, columns) tokens, each of 2 x 2 patches; clips of (frames, rows, columns), frames apart."""

    def tokens_of(size: tuple[int, ...]) -> list[int]:
        *clip, height, width = size
        return [*[7] * len(clip), START, *[VIDEO if clip else IMAGE] * (height * width), END] * (clip or [1])[0]

    inputs = conversation(cast("Rows", rows), tokens_of, seed, side)
    ids = inputs["input_ids"]
    inputs["mm_token_type_ids"] = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
    items = image_seeds(cast("Rows", rows), seed)
    for name, kind, length in (("pixel_values", "image", 2), ("pixel_values_videos", "video", 3)):
        chosen = [(own, (1, *size)[-3:]) for own, size in items if len(size) == length]
        if not chosen:
            continue
        longest = SIDE**2 * max(height * width for _, (_, height, width) in chosen)
        frames = sum(count for _, (count, _, _) in chosen)
        values, places, start = torch.zeros(frames, longest, 48), torch.full((frames, longest, 2), -1), 0
        for own, (count, height, width) in chosen:
            patches = SIDE**2 * height * width
            raster = torch.cartesian_prod(torch.arange(SIDE * height), torch.arange(SIDE * width)).flip(-1)
            values[start : start + count, :patches] = pixels(own, count, patches, 48)
            places[start : start + count, :patches] = raster
            start += count
        inputs |= {name: values, f"{kind}_position_ids": places}
        if kind == "video":
            inputs["num_frames_per_video"] = torch.tensor([count for _, (count, _, _) in chosen])
    return inputs
