"""LLaVA with a connector, whose images are several views: two slices that are not square, and an overview."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from foveate.testing.small_model import SIDE
from tests.families.zoo import END, IMAGE, START, Rows, conversation, image_seeds, pixels
from tests.families.zoo.llava_connector import with_large_weights

PATCH = 14


def views() -> Any:
    """The small LLaVA with a connector that keeps every patch."""
    return with_large_weights("mlp")


MODELS = {"foveate-llava-views": views}
FAMILY = {"foveate-llava-views": "foveate-llava"}


def sizes_of(size: tuple[int, int]) -> list[tuple[int, int]]:
    """Height and width of the views; an image of more than twelve units has three."""
    large = size[0] * size[1] > 12
    return [(SIDE, SIDE // 2), (SIDE, SIDE // 2), (SIDE, SIDE)] if large else [(SIDE // 2, SIDE)]


def tokens_of(size: tuple[int, int]) -> list[int]:
    """Tokens of every view, with text between them."""
    written = [START]
    for height, width in sizes_of(size):
        written += [*[IMAGE] * (height // PATCH * (width // PATCH)), END]
    return written


def prompts(model: Any, rows: Rows, side: str = "left", seed: int = 0) -> dict[str, Any]:
    """Views have 4 x 2, 2 x 4 or 4 x 4 tokens."""
    inputs: dict[str, Any] = conversation(rows, tokens_of, seed, side)
    sizes = [size for _, units in image_seeds(rows, seed) for size in sizes_of(units)]
    if not sizes:
        return inputs
    images: list[Tensor] = []
    for own, units in image_seeds(rows, seed):
        for number, (height, width) in enumerate(sizes_of(units)):
            padded = torch.zeros(3, SIDE, SIDE)
            padded[:, :height, :width] = pixels(own + 50 * number, 3, height, width)
            images.append(padded)
    return inputs | {"pixel_values": torch.stack(images), "image_sizes": torch.tensor(sizes)}
