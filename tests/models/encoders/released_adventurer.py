"""Weights and inputs of a small Adventurer in the authors' layout, as formulas."""

from __future__ import annotations

from torch import Tensor

from tests.models.connectors.released_tokenpacker import wave

#: Fields of `AdventurerConfig`; block 6 is flipped in pairs, and not in the authors' code.
FIELDS = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 7,
    "state_size": 6,
    "head_dim": 8,
    "flip": "released",
    "num_labels": 5,
}
WIDTH, INNER, STATE, HEADS, HIDDEN, PATCHES, CLASSES = 16, 32, 6, 4, 40, 16, 5


def shapes() -> dict[str, tuple[int, ...]]:
    """Shapes of the weights under the authors' names."""
    named: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, PATCHES + 1, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, 8, 8),
        "patch_embed.proj.bias": (WIDTH,),
        "head.weight": (CLASSES, WIDTH),
        "head.bias": (CLASSES,),
        "norm_f.weight": (WIDTH,),
    }
    for block in range(7):
        parts: dict[str, tuple[int, ...]] = {
            "norm.weight": (WIDTH,),
            "norm_mlp.weight": (WIDTH,),
            "mixer.in_proj.weight": (2 * INNER + 2 * STATE + HEADS, WIDTH),
            "mixer.conv1d.weight": (INNER + 2 * STATE, 1, 4),
            "mixer.conv1d.bias": (INNER + 2 * STATE,),
            "mixer.dt_bias": (HEADS,),
            "mixer.A_log": (HEADS,),
            "mixer.D": (HEADS,),
            "mixer.norm.weight": (INNER,),
            "mixer.out_proj.weight": (WIDTH, INNER),
            "mlp.w1.weight": (HIDDEN, WIDTH),
            "mlp.w1.bias": (HIDDEN,),
            "mlp.w2.weight": (HIDDEN, WIDTH),
            "mlp.w2.bias": (HIDDEN,),
            "mlp.w3.weight": (WIDTH, HIDDEN),
            "mlp.w3.bias": (WIDTH,),
        }
        named |= {f"layers.{block}.{name}": shape for name, shape in parts.items()}
    return named


def weights() -> dict[str, Tensor]:
    """Weights of the model and its classifier."""
    state = {}
    for number, (name, shape) in enumerate(shapes().items()):
        values = wave(number + 400, shape, 0.3)
        state[name] = values + 1.0 if "norm" in name and name.endswith(".weight") else values
    return state


def pixels() -> Tensor:
    """Two images."""
    return wave(7, (2, 3, 32, 32), 1.0)
