"""Weights and inputs of a small SiT in the authors' layout, as formulas."""

from __future__ import annotations

from torch import Tensor

from tests.models.connectors.released_tokenpacker import wave

#: Fields of `SiTConfig`; 16 patches become 8, 4 and 2 tokens.
FIELDS = {
    "image_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 5,
    "num_attention_heads": 2,
    "intermediate_size": 96,
    "stage_blocks": [1, 1, 1, 2],
    "num_labels": 5,
}
WIDTH, HIDDEN, PATCHES, CLASSES = 32, 96, 16, 5
#: Tokens after every block.
TOKENS = (8, 4, 2, 2, 2)
#: Channels of the stem.
CHANNELS = (3, 4, 8, 16, 32)


def shapes(*, slimming: bool) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights under the authors' names, of a student or of its teacher."""
    named: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, PATCHES + 1, WIDTH),
        **_layer("norm", (WIDTH,)),
        **_layer("head", (CLASSES, WIDTH)),
        **_layer("aux_head", (CLASSES, WIDTH)),
    }
    for number in range(1, 5):
        inputs, outputs = CHANNELS[number - 1 : number + 1]
        named[f"patch_embed.conv{number}.weight"] = (outputs, inputs, 3, 3)
        for part in ("weight", "bias", "running_mean", "running_var"):
            named[f"patch_embed.bn{number}.{part}"] = (outputs,)
    for block in range(5):
        named |= _layer(f"blocks.{block}.norm1", (WIDTH,)) | _layer(f"blocks.{block}.norm2", (WIDTH,))
        named[f"blocks.{block}.attn.qkv.weight"] = (3 * WIDTH, WIDTH)
        named |= _layer(f"blocks.{block}.attn.proj", (WIDTH, WIDTH))
        named |= _mlp(f"blocks.{block}.mlp", WIDTH, HIDDEN, WIDTH)
    if not slimming:
        return named
    for stage, count in enumerate(TOKENS[:3]):
        named[f"tsm.{stage}.scale"] = (1, 1, 1)
        named |= _layer(f"tsm.{stage}.weight.0", (WIDTH,)) | _layer(f"tsm.{stage}.weight.1", (WIDTH // 2, WIDTH))
        named |= _layer(f"tsm.{stage}.weight.3", (count, WIDTH // 2))
    for block, count in enumerate(TOKENS):
        named |= _layer(f"rtsm.{block}.norm1", (WIDTH,)) | _layer(f"rtsm.{block}.norm2", (WIDTH,))
        named |= _mlp(f"rtsm.{block}.mlp1", count, 4 * PATCHES, PATCHES)
        named |= _mlp(f"rtsm.{block}.mlp2", WIDTH, 4 * WIDTH, WIDTH)
    return named


def _layer(name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _mlp(name: str, inputs: int, hidden: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return _layer(f"{name}.fc1", (hidden, inputs)) | _layer(f"{name}.fc2", (outputs, hidden))


def weights(*, slimming: bool) -> dict[str, Tensor]:
    """Weights of the student, or other ones of the teacher."""
    state = {}
    for number, (name, shape) in enumerate(shapes(slimming=slimming).items()):
        values = wave(number + 200 * (not slimming), shape, 0.2)
        scale = "norm" in name or ".bn" in name or ".weight.0." in name
        positive = name.endswith(("running_var", "scale")) or (scale and name.endswith(".weight"))
        state[name] = values + 1.0 if positive else values
    return state


def pixels() -> Tensor:
    """Two images."""
    return wave(7, (2, 3, 64, 64), 1.0)
