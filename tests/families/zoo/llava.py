"""LLaVA-1.5 with a CLIP tower, and with a SigLIP tower, which has no [CLS]."""

from __future__ import annotations

from typing import Any

import torch

from foveate.testing.small_model import SIDE, TOKENS, llava
from tests.families.zoo import IMAGE, Rows, conversation, image_seeds, pixels

MODELS = {"llava": llava, "llava-siglip": lambda: llava("siglip")}
FAMILY = {"llava-siglip": "llava"}


def prompts(model: Any, rows: Rows, side: str = "left", seed: int = 0) -> dict[str, Any]:
    """Every image has 4 x 4 tokens."""
    inputs = conversation(rows, lambda size: [IMAGE] * TOKENS, seed, side)
    images = [pixels(own, 3, SIDE, SIDE) for own, _ in image_seeds(rows, seed)]
    return inputs | ({"pixel_values": torch.stack(images)} if images else {})
