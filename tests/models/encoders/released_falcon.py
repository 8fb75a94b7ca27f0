"""Weights and inputs of a small FALCON encoder in the authors' layout, as formulas."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.models.connectors.released_tokenpacker import wave

WIDTH, HIDDEN, SIDE, PATCH, REGISTERS, CROPS, BLOCKS = 16, 24, 12, 4, 3, 4, 2
#: Fields of `FalconVisionConfig`.
FIELDS: dict[str, Any] = {
    "image_size": SIDE,
    "patch_size": PATCH,
    "hidden_size": WIDTH,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 2,
    "intermediate_size": HIDDEN,
    "num_registers": REGISTERS,
    "max_crops": CROPS,
}
#: Three images: the whole one and 2 x 1 crops, the whole one alone, the whole one and 1 x 2 crops.
CROPS_PER_IMAGE = [3, 1, 3]
POSITIONS = [[4, 4], [0, 0], [1, 0], [4, 4], [4, 4], [0, 0], [0, 1]]


def shapes(geometry: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights under the authors' names."""
    tower = "vision_tower.vision_model."
    clip = geometry == "clip"
    named: dict[str, tuple[int, ...]] = {
        "vision_queries": (1, REGISTERS, WIDTH),
        "crop_embedding_h.weight": (CROPS + 1, WIDTH),
        "crop_embedding_w.weight": (CROPS + 1, WIDTH),
        f"{tower}embeddings.patch_embedding.weight": (WIDTH, 3, PATCH, PATCH),
        f"{tower}embeddings.position_embedding.weight": ((SIDE // PATCH) ** 2 + clip, WIDTH),
    }
    if clip:
        named |= {f"{tower}embeddings.class_embedding": (WIDTH,), **_layer(f"{tower}pre_layrnorm", (WIDTH,))}
    else:
        named[f"{tower}embeddings.patch_embedding.bias"] = (WIDTH,)
    named |= _layer(f"{tower}post_layernorm", (WIDTH,))
    for block in range(BLOCKS):
        start = f"{tower}encoder.layers.{block}"
        for attention in ("self_attn", "interact_attn"):
            for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                named |= _layer(f"{start}.{attention}.{part}", (WIDTH, WIDTH))
        named |= _layer(f"{start}.layer_norm1", (WIDTH,)) | _layer(f"{start}.layer_norm2", (WIDTH,))
        named |= _layer(f"{start}.mlp.fc1", (HIDDEN, WIDTH)) | _layer(f"{start}.mlp.fc2", (WIDTH, HIDDEN))
    return named


def _layer(name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def weights(geometry: str) -> dict[str, Tensor]:
    """Weights of one geometry."""
    state = {}
    for number, (name, shape) in enumerate(shapes(geometry).items()):
        values = wave(number, shape, 0.3)
        state[name] = values + 1.0 if "norm" in name and name.endswith("weight") else values
    return state


def pixels() -> Tensor:
    """The seven crops."""
    return wave(7, (7, 3, SIDE, SIDE), 1.0)


def positions() -> Tensor:
    """Rows and columns of the crops."""
    return torch.tensor(POSITIONS)
