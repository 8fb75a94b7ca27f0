"""Weights and inputs of a small STViT in the authors' layout, as formulas."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from torch import Tensor

from tests.models.connectors.released_tokenpacker import wave

#: Fields of `STViTConfig`: cells of 3 x 3 and 2 x 2 tokens, the latter with padding, and all tokens.
FIELDS: dict[str, Any] = {
    "image_size": 36,
    "depths": [1, 2, 1],
    "hidden_sizes": [8, 12, 16],
    "num_heads": [2, 3, 2],
    "cell_sizes": [3, 2, 1],
    "layer_scale": [False, True, True],
    "num_iterations": 2,
    "mlp_ratio": 2.0,
    "projection_size": 20,
    "num_labels": 5,
}
WIDTHS = FIELDS["hidden_sizes"]


def shapes() -> dict[str, tuple[int, ...]]:
    """Shapes of the weights under the authors' names."""
    named: dict[str, tuple[int, ...]] = {}
    half = WIDTHS[0] // 2
    for number, (inputs, outputs) in enumerate(((3, half), (half, half), (half, WIDTHS[0]), (WIDTHS[0], WIDTHS[0]))):
        named |= _layer(f"patch_embed.proj.{3 * number}", (outputs, inputs, 3, 3))
        named |= _batch_norm(f"patch_embed.proj.{3 * number + 2}", outputs)
    for stage, width in enumerate(WIDTHS):
        hidden = int(width * FIELDS["mlp_ratio"])
        for block in range(FIELDS["depths"][stage]):
            name = f"layers.{stage}.blocks.{block}"
            if FIELDS["layer_scale"][stage]:
                named |= {f"{name}.gamma_1": (1, width, 1, 1), f"{name}.gamma_2": (1, width, 1, 1)}
            named |= _layer(f"{name}.pos_embed.conv", (width, 1, 3, 3)) | _layer(f"{name}.norm1.norm", (width,))
            named |= _layer(f"{name}.attn.stoken_refine.qkv", (3 * width, width, 1, 1))
            named |= _layer(f"{name}.attn.stoken_refine.proj", (width, width, 1, 1))
            named |= _batch_norm(f"{name}.norm2", width)
            named |= _layer(f"{name}.mlp2.fc1", (hidden, width, 1, 1))
            named |= _layer(f"{name}.mlp2.fc2", (width, hidden, 1, 1))
            named |= _layer(f"{name}.mlp2.conv.conv", (hidden, 1, 3, 3))
    for stage, (inputs, outputs) in enumerate(pairwise(WIDTHS)):
        named |= _layer(f"layers.{stage}.downsample.proj.0", (outputs, inputs, 3, 3))
        named |= _batch_norm(f"layers.{stage}.downsample.proj.1", outputs)
    named |= _layer("proj", (20, WIDTHS[-1], 1, 1)) | _batch_norm("norm", 20) | _layer("head", (5, 20))
    return named


def _layer(name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _batch_norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}


def weights() -> dict[str, Tensor]:
    """Weights under the authors' names; those of norms and layer scales are around 1."""
    state = {}
    named = shapes()
    for number, (name, shape) in enumerate(named.items()):
        norm = len(shape) == 1 and name.endswith(".weight")
        state[name] = wave(number, shape, 0.3) + float(norm or "gamma" in name or name.endswith("running_var"))
    return state


def pixels() -> Tensor:
    """Two images."""
    return wave(7, (2, 3, 36, 36), 1.0)


def projection() -> Tensor:
    """What the logits are multiplied by before the gradient is taken."""
    return wave(9, (2, 5), 1.0)
