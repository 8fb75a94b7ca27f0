"""Weights and inputs of VQToken in the authors' layout, as formulas; small sizes, which the authors' classes take."""

from __future__ import annotations

from torch import Tensor

from tests.models.connectors.released_tokenpacker import wave

WIDTH, TEXT_WIDTH, PLACES, HEADS, CLUSTERS, HIDDEN = 12, 16, 9, 8, 5, 2048
DECODER = "cross_attention.transformer_decoder.layers.0"

#: Shapes of the weights under the authors' names.
SHAPES = {
    "mm_projector.0.weight": (TEXT_WIDTH, WIDTH),
    "mm_projector.0.bias": (TEXT_WIDTH,),
    "mm_projector.2.weight": (TEXT_WIDTH, TEXT_WIDTH),
    "mm_projector.2.bias": (TEXT_WIDTH,),
    "cross_attention.to_q_proj.weight": (TEXT_WIDTH, PLACES),
    "cross_attention.to_q_proj.bias": (TEXT_WIDTH,),
    **{
        f"{DECODER}.{part}.{name}": shape
        for part in ("self_attn", "multihead_attn")
        for name, shape in (
            ("in_proj_weight", (3 * TEXT_WIDTH, TEXT_WIDTH)),
            ("in_proj_bias", (3 * TEXT_WIDTH,)),
            ("out_proj.weight", (TEXT_WIDTH, TEXT_WIDTH)),
            ("out_proj.bias", (TEXT_WIDTH,)),
        )
    },
    f"{DECODER}.linear1.weight": (HIDDEN, TEXT_WIDTH),
    f"{DECODER}.linear1.bias": (HIDDEN,),
    f"{DECODER}.linear2.weight": (TEXT_WIDTH, HIDDEN),
    f"{DECODER}.linear2.bias": (TEXT_WIDTH,),
    **{f"{DECODER}.norm{number}.{kind}": (TEXT_WIDTH,) for number in (1, 2, 3) for kind in ("weight", "bias")},
}


def weights() -> dict[str, Tensor]:
    return {
        f"model.{name}": wave(number, shape, 0.3) + (1.0 if ".norm" in name and name.endswith("weight") else 0.0)
        for number, (name, shape) in enumerate(SHAPES.items())
    }


def features(frames: int) -> Tensor:
    """Features (T, 9, 12) of a clip."""
    return wave(60 + frames, (frames, PLACES, WIDTH), 1.0)
