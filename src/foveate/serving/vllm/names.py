"""Names of weights that vLLM reads."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file


def as_published(folder: Path) -> None:
    """Give a saved LLaVA's CLIP tower the names of published models, in place.

    vLLM reads only these; transformers 5 saves shorter ones, and reads both.

    Args:
        folder: With a `model.safetensors` of one piece.
    """
    file = folder / "model.safetensors"
    with safe_open(file, "pt") as weights:
        found = {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118 (it is no dictionary)
    own, theirs = "vision_tower.", "vision_tower.vision_model."
    save_file({n if theirs in n else n.replace(own, theirs): w for n, w in found.items()}, file, {"format": "pt"})
