"""Image files and vision towers, for trainers that need no text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.images import open_image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".tif", ".tiff", ".bmp")


def image_files(paths: Iterable[Path]) -> list[Path]:
    """The images that paths name: files, and all in folders.

    Raises:
        FoveateError: a path does not exist, or there are no images.
    """
    paths, files = list(paths), []
    for path in paths:
        if path.is_dir():
            files += sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        elif path.exists():
            files.append(path)
        else:
            raise FoveateError(f"there is no image or folder {path}.")
    if not files:
        raise FoveateError(f"{', '.join(map(str, paths))}: no images there ({', '.join(SUFFIXES)}).")
    return files


def load_with_encoder(model: str, device: str | None) -> tuple[Any, Any]:
    """A vision encoder, or a model that has one, and its image processor."""
    from transformers import AutoImageProcessor, AutoModel

    from foveate.core.weights import DATA_ONLY, SAFE, check_weights
    from foveate.loading import device_of, locate

    place, folder = device_of(device), locate(model)
    check_weights(folder)
    loaded: Any = AutoModel.from_pretrained(folder, **SAFE)
    return loaded.eval().to(place), AutoImageProcessor.from_pretrained(folder, **DATA_ONLY)


def pixels_of(processor: Any, images: Sequence[Path | Image.Image]) -> Tensor:
    """Pixel values (B, 3, height, width); of tiled images every crop."""
    # One at a time: where images have different numbers of crops, a batch of them would be padded with empty ones.
    pixels = [processor(images=[open_image(image)], return_tensors="pt")["pixel_values"] for image in images]
    return torch.cat([crops.flatten(0, -4) for crops in pixels])
