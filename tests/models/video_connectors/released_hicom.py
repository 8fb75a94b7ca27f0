"""Weights and inputs of HICom in the authors' layout, as formulas; at their width, which their code fixes."""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.models.video_connectors import Instruction

WIDTH, TEXT_WIDTH, WORDS = 1152, 6, 5

#: Fields of the authors' configuration by case, with frames, rows and columns of the clip.
CASES: dict[str, tuple[dict[str, str], tuple[int, int, int]]] = {
    "release": ({"mm_projector_type": "local43_adaptkv_global3_coarse", "use_guide": "direct"}, (8, 6, 6)),
    "coarse": (
        {"mm_projector_type": "local22_adaptqkvg_guidecoarse_global3_adaptg_guidecoarse", "use_guide": "direct"},
        (3, 5, 6),
    ),
    "fine": (
        {"mm_projector_type": "local22_adaptk_global2", "use_guide": "fine", "use_clip_scale": "local,global"},
        (1, 4, 5),
    ),
    "off": ({"mm_projector_type": "local22_global2", "use_guide": "off"}, (2, 4, 4)),
}


def wave(name: str, shape: tuple[int, ...], size: float) -> Tensor:
    """Values that look random, are the same on every machine and differ by name."""
    number = sum((place + 1) * ord(letter) for place, letter in enumerate(name)) % 997
    places = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return (size * torch.sin(places * (1.7 + 0.0013 * number) + places**2 * 1e-3)).float().view(shape)


def weights(shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """Weights of these names and shapes."""
    return {
        name: wave(name, tuple(shape), 0.5 if name.endswith(("alpha", "scale", "query")) else 0.04)
        + (1.0 if name.endswith("norm.weight") else 0.0)
        for name, shape in shapes.items()
    }


def features(case: str) -> Tensor:
    """Features and joint-space embeddings (T, N, 2, 1152) of a clip."""
    frames, rows, columns = CASES[case][1]
    return wave(f"features of {case}", (frames, rows * columns, 2, WIDTH), 1.0)


def instruction(case: str) -> Instruction:
    return Instruction(torch.arange(WORDS), wave("words", (WORDS, WIDTH), 1.0), wave("pooled", (WIDTH,), 1.0))
