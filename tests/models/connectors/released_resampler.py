"""Weights and inputs of the resamplers of LLaVA-UHD in the authors' layout, as formulas; small sizes."""

from __future__ import annotations

from torch import Tensor

from tests.models.connectors.released_tokenpacker import wave

WIDTH, TEXT_WIDTH, SIDE, HEADS = 12, 16, 4, 4

#: Shapes of the weights under the authors' names, without the positions, which are computed.
SHAPES = {
    "query": (SIDE**2, TEXT_WIDTH),
    "kv_proj.weight": (TEXT_WIDTH, WIDTH),
    "attn.in_proj_weight": (3 * TEXT_WIDTH, TEXT_WIDTH),
    "attn.in_proj_bias": (3 * TEXT_WIDTH,),
    "attn.out_proj.weight": (TEXT_WIDTH, TEXT_WIDTH),
    "attn.out_proj.bias": (TEXT_WIDTH,),
    **{f"ln_{part}.{kind}": (TEXT_WIDTH,) for part in ("q", "kv", "post") for kind in ("weight", "bias")},
    "proj": (TEXT_WIDTH, TEXT_WIDTH),
}
#: Rows and columns of features, some not multiples of the cells, some fewer.
GRIDS = ((8, 8), (9, 11), (5, 14), (13, 6), (3, 10))


def weights() -> dict[str, Tensor]:
    return {
        name: wave(number, shape, 0.4) + (1.0 if name.startswith("ln") and name.endswith("weight") else 0.0)
        for number, (name, shape) in enumerate(SHAPES.items())
    }


def features(case: int, rows: int, columns: int) -> Tensor:
    """Features (1, N, 12) of an image."""
    return wave(50 + case, (1, rows * columns, WIDTH), 1.0)
