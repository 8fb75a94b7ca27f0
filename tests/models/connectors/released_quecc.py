"""Weights and inputs of QueCC in the authors' layout and at their sizes, as formulas."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.models.connectors.released_tokenpacker import GRID, LEVELS, TEXT_WIDTH, WIDTH, features, wave

__all__ = ["GRID", "LEVELS", "TEXT_WIDTH", "WIDTH", "features", "question", "weights"]


def shapes(scale: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights under the authors' names."""
    return {
        **{
            f"0.{part}_proj.{layer}.{kind}": shape
            for part, inputs in (("q", WIDTH), ("k", LEVELS * WIDTH), ("v", LEVELS * WIDTH))
            for layer, kind, shape in (
                (0, "weight", (WIDTH, inputs)),
                (0, "bias", (WIDTH,)),
                (2, "weight", (WIDTH, WIDTH)),
                (2, "bias", (WIDTH,)),
                (3, "weight", (WIDTH,)),
                (3, "bias", (WIDTH,)),
            )
        },
        "0.clip_attn.in_proj_weight": (3 * WIDTH, WIDTH),
        "0.clip_attn.in_proj_bias": (3 * WIDTH,),
        "0.clip_attn.out_proj.weight": (WIDTH, WIDTH),
        "0.clip_attn.out_proj.bias": (WIDTH,),
        "0.q_downsample.weight": (WIDTH, 1, scale, scale),
        "0.q_downsample.bias": (WIDTH,),
        "0.text_projection.0.weight": (WIDTH, TEXT_WIDTH),
        "0.text_projection.0.bias": (WIDTH,),
        "0.text_projection.1.weight": (WIDTH,),
        "0.text_projection.1.bias": (WIDTH,),
        "1.weight": (TEXT_WIDTH, WIDTH),
        "1.bias": (TEXT_WIDTH,),
        "3.weight": (TEXT_WIDTH, TEXT_WIDTH),
        "3.bias": (TEXT_WIDTH,),
    }


def weights(scale: int) -> dict[str, Tensor]:
    norms = ("_proj.3.weight", "text_projection.1.weight")
    return {
        name: wave(number, shape, 0.05) + (1.0 if name.endswith(norms) else 0.0)
        for number, (name, shape) in enumerate(shapes(scale).items())
    }


def question(case: int) -> Tensor:
    """The last hidden states `(2, 1, text width)` of two questions."""
    return torch.cat([wave(110 + case, (1, 1, TEXT_WIDTH), 1.0), wave(130 + case, (1, 1, TEXT_WIDTH), 1.0)])
