"""Weights and inputs of TokenPacker in the authors' layout and at their sizes, as formulas."""

from __future__ import annotations

import torch
from torch import Tensor

WIDTH, LEVELS, TEXT_WIDTH, GRID = 1024, 4, 12, 12

#: Shapes of the weights under the authors' names.
SHAPES = {
    "q_proj_1.weight": (WIDTH, WIDTH),
    **{
        f"{part}_proj_1.{layer}.{kind}": shape
        for part in "kv"
        for layer, inputs in (("0", LEVELS * WIDTH), ("2", WIDTH))
        for kind, shape in (("weight", (WIDTH, inputs)), ("bias", (WIDTH,)))
    },
    **{f"ln_{part}_1.{kind}": (WIDTH,) for part in "qkv" for kind in ("weight", "bias")},
    "clip_attn.in_proj_weight": (3 * WIDTH, WIDTH),
    "clip_attn.in_proj_bias": (3 * WIDTH,),
    "clip_attn.out_proj.weight": (WIDTH, WIDTH),
    "clip_attn.out_proj.bias": (WIDTH,),
    "mlp.0.weight": (TEXT_WIDTH, WIDTH),
    "mlp.0.bias": (TEXT_WIDTH,),
    "mlp.2.weight": (TEXT_WIDTH, TEXT_WIDTH),
    "mlp.2.bias": (TEXT_WIDTH,),
}


def wave(number: int, shape: tuple[int, ...], size: float) -> Tensor:
    """Values that look random and are the same on every machine."""
    count = torch.Size(shape).numel()
    places = torch.arange(count, dtype=torch.float64)
    return (size * torch.sin(places * (1.7 + 0.13 * number) + places**2 * 1e-3)).float().view(shape)


def weights() -> dict[str, Tensor]:
    return {
        name: wave(number, shape, 0.05) + (1.0 if name.startswith("ln") and name.endswith("weight") else 0.0)
        for number, (name, shape) in enumerate(SHAPES.items())
    }


def features(case: int) -> tuple[Tensor, Tensor]:
    """The single level (2, 144, 1024) and the four levels (2, 144, 4096) of two images."""
    single = wave(50 + case, (2, GRID * GRID, WIDTH), 1.0)
    return single, wave(80 + case, (2, GRID * GRID, LEVELS * WIDTH), 1.0)
