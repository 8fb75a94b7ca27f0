"""Weights and inputs of the authors' projector of TokenFLEX in their layout, as formulas."""

from __future__ import annotations

from torch import Tensor

from tests.models.connectors.released_tokenpacker import wave

WIDTH, TEXT_WIDTH = 8, 5

#: Shapes of the weights under the authors' names.
SHAPES = {
    **{f"mlp.layernorm.{kind}": (WIDTH,) for kind in ("weight", "bias")},
    **{
        f"mlp.{layer}.{kind}": shape
        for layer in ("f1", "f2")
        for kind, shape in (("weight", (3 * WIDTH, WIDTH)), ("bias", (3 * WIDTH,)))
    },
    "mlp.g.weight": (TEXT_WIDTH, 3 * WIDTH),
    "mlp.g.bias": (TEXT_WIDTH,),
}


def weights() -> dict[str, Tensor]:
    return {
        name: wave(number, shape, 0.3) + (1.0 if name == "mlp.layernorm.weight" else 0.0)
        for number, (name, shape) in enumerate(SHAPES.items())
    }


def features(case: int, side: int) -> Tensor:
    """Features (2, N, 8) of two images."""
    return wave(50 + case, (2, side * side, WIDTH), 1.0)
