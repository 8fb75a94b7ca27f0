"""Weights and inputs of LangDC in the authors' layout, as formulas; small sizes, which the authors' code takes."""

from __future__ import annotations

from torch import Tensor

from tests.models.connectors.released_tokenpacker import wave

IMAGE_WIDTH, VIDEO_WIDTH, TEXT_WIDTH, FRAMES = 6, 5, 12, 16
#: Options of the small language model, and of the captions.
OPTIONS = {
    "vocabulary": 24,
    "width": 16,
    "layers": 2,
    "heads": 4,
    "key_value_heads": 2,
    "hidden": 24,
    "tokens": 9,
    "before": [7, 4],
    "after": [8, 9, 2],
    "video_width": VIDEO_WIDTH,
}
#: The first token of each case ends captions, the second one too, and pads them.
STOPS = ((3, 0), (11, 0), (20, 0), (23, 0))

_LLM = "cap_light_llm.model"
_MLPS = {
    "image_mm_projector": (IMAGE_WIDTH, TEXT_WIDTH),
    "mm_projector": (VIDEO_WIDTH, TEXT_WIDTH),
    "cap_image_mm_projector": (IMAGE_WIDTH, 16),
    "cap_mm_projector": (VIDEO_WIDTH, 16),
    "llm_projector": (16, TEXT_WIDTH),
}
#: Shapes of the weights under the authors' names.
SHAPES: dict[str, tuple[int, ...]] = {
    **{f"{name}.0.weight": (width, read) for name, (read, width) in _MLPS.items()},
    **{f"{name}.0.bias": (width,) for name, (_, width) in _MLPS.items()},
    **{f"{name}.2.weight": (width, width) for name, (_, width) in _MLPS.items()},
    **{f"{name}.2.bias": (width,) for name, (_, width) in _MLPS.items()},
    f"{_LLM}.embed_tokens.weight": (24, 16),
    **{
        f"{_LLM}.layers.{layer}.{name}": shape
        for layer in range(2)
        for name, shape in {
            "self_attn.q_proj.weight": (16, 16),
            "self_attn.q_proj.bias": (16,),
            "self_attn.k_proj.weight": (8, 16),
            "self_attn.k_proj.bias": (8,),
            "self_attn.v_proj.weight": (8, 16),
            "self_attn.v_proj.bias": (8,),
            "self_attn.o_proj.weight": (16, 16),
            "mlp.gate_proj.weight": (24, 16),
            "mlp.up_proj.weight": (24, 16),
            "mlp.down_proj.weight": (16, 24),
            "input_layernorm.weight": (16,),
            "post_attention_layernorm.weight": (16,),
        }.items()
    },
    f"{_LLM}.norm.weight": (16,),
}


def weights() -> dict[str, Tensor]:
    return {
        f"model.{name}": wave(number, shape, 0.6) + (1.0 if "norm" in name else 0.0)
        for number, (name, shape) in enumerate(SHAPES.items())
    }


def features() -> tuple[Tensor, Tensor]:
    """Features of 16 frames: (16, 144, 6) of the image encoder and (16, 64, 5) of the video encoder."""
    return wave(90, (FRAMES, 144, IMAGE_WIDTH), 1.0), wave(91, (FRAMES, 64, VIDEO_WIDTH), 1.0)
