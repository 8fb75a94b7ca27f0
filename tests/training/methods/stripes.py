"""A task for tiny models: the direction of stripes, half of which are too fine for the reduced image."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import foveate
from foveate.training.grpo.rollouts import Question
from foveate.training.methods.visionthink import VisionThinkTrainer
from tests.tiny_model import save_llava_uhd

SIDE = 64


class Stripes(VisionThinkTrainer):
    """Stripes of 16 pixels, which the reduced image shows, and of one pixel, which become even grey there."""

    def question(self, number: int, split: str) -> Question:
        rng = random.Random(f"{number} {split}")
        fine, answer = number % 2 == 1, rng.choice("HV")
        period = 2 if fine else 32
        line = (np.arange(SIDE) + rng.randrange(period)) % period < period // 2
        grey = np.where(line, rng.randint(150, 255), rng.randint(0, 100)).astype(np.uint8)
        pixels = np.broadcast_to(grey[:, None] if answer == "H" else grey[None], (SIDE, SIDE))
        return Question(Image.fromarray(pixels.copy()).convert("RGB"), "?", answer, {"small": fine})


def tiny(folder: Path) -> tuple[Any, Any]:
    """A tiny model with weights that are small enough to be trained."""
    model, processor = foveate.load(save_llava_uhd(folder), device="cpu")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.1)
    return model, processor
