"""Weights and inputs of LLaVA-Mini's compression and pre-fusion in the authors' layout, as formulas."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig

from tests.models.connectors.released_tokenpacker import wave

#: Width of features, of text, patches a side, and decoder layers.
WIDTH, TEXT_WIDTH, GRID, LAYERS = 32, 16, 4, 2
VOCABULARY, IMAGE = 40, 39
TEXT = LlamaConfig(
    vocab_size=VOCABULARY,
    hidden_size=TEXT_WIDTH,
    intermediate_size=24,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
)
#: Prompts in the authors' ids, -200 for an image and 0 for padding; and the labels of the second case.
IDS = [[1, 5, -200, 6, 7, 8, 9, 10], [1, -200, 11, 12, 13, 14, 0, 0]]
LABELS = [[-100, -100, -100, -100, -100, -100, 9, 10], [-100, -100, -100, -100, 13, 14, -100, -100]]
CASES: dict[str, dict[str, Any]] = {
    "one-token": {"size": 1, "frames": 1, "parts": 1, "labels": False},
    "answers": {"size": 2, "frames": 1, "parts": 1, "labels": True},
    "sub-images": {"size": 2, "frames": 1, "parts": 5, "labels": False},
    "video": {"size": 1, "frames": 3, "parts": 1, "labels": False},
}


def shapes(size: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights under the authors' names."""
    attention = {"q": TEXT_WIDTH, "k": TEXT_WIDTH // 2, "v": TEXT_WIDTH // 2, "o": TEXT_WIDTH}
    return {
        "compressor.query": (size**2, WIDTH),
        "compressor.attn.in_proj_weight": (3 * WIDTH, WIDTH),
        "compressor.attn.in_proj_bias": (3 * WIDTH,),
        "compressor.attn.out_proj.weight": (WIDTH, WIDTH),
        "compressor.attn.out_proj.bias": (WIDTH,),
        **{f"compressor.{norm}.{kind}": (WIDTH,) for norm in ("ln_q", "ln_kv") for kind in ("weight", "bias")},
        "mm_projector.0.weight": (TEXT_WIDTH, WIDTH),
        "mm_projector.0.bias": (TEXT_WIDTH,),
        "mm_projector.2.weight": (TEXT_WIDTH, TEXT_WIDTH),
        "mm_projector.2.bias": (TEXT_WIDTH,),
        "embed_tokens.weight": (VOCABULARY, TEXT_WIDTH),
        **{
            f"prefusion_layers.{layer}.{name}.weight": shape
            for layer in range(LAYERS)
            for name, shape in (
                *((f"self_attn.{part}_proj", (rows, TEXT_WIDTH)) for part, rows in attention.items()),
                ("mlp.gate_proj", (24, TEXT_WIDTH)),
                ("mlp.up_proj", (24, TEXT_WIDTH)),
                ("mlp.down_proj", (TEXT_WIDTH, 24)),
                ("input_layernorm", (TEXT_WIDTH,)),
                ("post_attention_layernorm", (TEXT_WIDTH,)),
            )
        },
    }


def weights(size: int) -> dict[str, Tensor]:
    norms = ("norm.weight", "ln_q.weight", "ln_kv.weight")
    return {
        name: wave(number, shape, 0.3) + (1.0 if name.endswith(norms) else 0.0)
        for number, (name, shape) in enumerate(shapes(size).items())
    }


def features(case: str) -> Tensor:
    """Features `(2, frames, parts, 16, 32)` of the images of both prompts."""
    shape = (2, CASES[case]["frames"], CASES[case]["parts"], GRID * GRID, WIDTH)
    return wave(60 + list(CASES).index(case), shape, 1.0)


def expanded(case: str) -> tuple[Tensor, Tensor, Tensor]:
    """The prompts with one placeholder for each token: ids, mask and answers `(2, L)`, padded on the right."""
    count = CASES[case]["size"] ** 2 * CASES[case]["frames"]
    rows = []
    for ids, labels in zip(IDS, LABELS, strict=True):
        row = []
        for token, label in zip(ids, labels, strict=True):
            answer = CASES[case]["labels"] and label != -100
            row += [(IMAGE, 1, False)] * count if token == -200 else [(token, int(token != 0), answer)]
        rows.append(row)
    ids, mask, answers = (torch.tensor([[one[part] for one in row] for row in rows]) for part in range(3))
    return ids, mask, answers.bool()


def embeddings(case: str, fused: Tensor) -> Tensor:
    """Outputs of the authors' code or of ours `(2, L, 16)`, zero at padding."""
    return fused * expanded(case)[1].unsqueeze(-1)
