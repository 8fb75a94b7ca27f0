"""Weights and inputs of a small OryxViT in the authors' layout, as formulas."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tests.models.connectors.released_tokenpacker import wave

#: Fields of `OryxViTConfig`. Positions are 5 x 5, for images of 40 x 40 pixels.
FIELDS: dict[str, Any] = {
    "image_size": 40,
    "patch_size": 8,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 44,
    "position_side": 5,
}
#: Height and width of three images: fewer patches than positions, as many, and more.
SIZES = ((24, 32), (40, 40), (56, 48))


def shapes() -> dict[str, tuple[int, ...]]:
    """Shapes of the weights under the authors' names."""
    width, hidden, patch = FIELDS["hidden_size"], FIELDS["intermediate_size"], FIELDS["patch_size"]
    named: dict[str, tuple[int, ...]] = {"pos_embed": (1, FIELDS["position_side"] ** 2, width)}
    named |= _layer("patch_embed.proj", (width, 3, patch, patch))
    for block in range(FIELDS["num_hidden_layers"]):
        name = f"blocks.{block}"
        named |= _layer(f"{name}.norm1", (width,)) | _layer(f"{name}.attn.qkv", (3 * width, width))
        named |= _layer(f"{name}.attn.proj", (width, width)) | _layer(f"{name}.norm2", (width,))
        named |= _layer(f"{name}.mlp.fc1", (hidden, width)) | _layer(f"{name}.mlp.fc2", (width, hidden))
    return named


def _layer(name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def weights() -> dict[str, Tensor]:
    """Weights under the authors' names; those of norms are around 1."""
    return {
        name: wave(number, shape, 0.3) + float(len(shape) == 1 and name.endswith(".weight"))
        for number, (name, shape) in enumerate(shapes().items())
    }


def pixels(case: int) -> Tensor:
    """One image `(1, 3, H, W)` of `SIZES[case]`."""
    return wave(7 + case, (1, 3, *SIZES[case]), 1.0)


def projection(case: int, shape: tuple[int, ...]) -> Tensor:
    """What the tokens are multiplied by before the gradient is taken."""
    return wave(20 + case, shape, 1.0)
