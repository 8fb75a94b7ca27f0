"""Weights and inputs of MQT in the authors' layout, as formulas; small sizes, which the authors' class takes."""

from __future__ import annotations

from torch import Tensor

from tests.models.connectors.released_tokenpacker import wave

WIDTH, TEXT_WIDTH, SIDE, HEADS = 16, 6, 4, 4

#: Shapes of the weights under the authors' names, without the positions, which are computed.
SHAPES = {
    "query": (SIDE**2, WIDTH),
    "attn.in_proj_weight": (3 * WIDTH, WIDTH),
    "attn.in_proj_bias": (3 * WIDTH,),
    "attn.out_proj.weight": (WIDTH, WIDTH),
    "attn.out_proj.bias": (WIDTH,),
    **{f"ln_{part}.{kind}": (WIDTH,) for part in "qkv" for kind in ("weight", "bias")},
    "proj": (WIDTH, TEXT_WIDTH),
}


def weights() -> dict[str, Tensor]:
    return {
        name: wave(number, shape, 0.3) + (1.0 if name.startswith("ln") and name.endswith("weight") else 0.0)
        for number, (name, shape) in enumerate(SHAPES.items())
    }


def features(case: int, rows: int, columns: int) -> Tensor:
    """Features (2, N, 16) of two images."""
    return wave(50 + case, (2, rows * columns, WIDTH), 1.0)
