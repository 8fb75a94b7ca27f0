"""Layouts of tiled images at the sizes of published models, for images of any shape, without a model's weights."""

from __future__ import annotations

import random
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlavaNextConfig, LlavaNextProcessor, LlavaOnevisionConfig, LlavaOnevisionProcessor
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

from foveate.core.tokens import Crop
from foveate.families import ImageLayout, families

KINDS: dict[str, Any] = {
    "llava-next": (LlavaNextConfig, LlavaNextModel, LlavaNextProcessor),
    "llava-onevision": (LlavaOnevisionConfig, LlavaOnevisionModel, LlavaOnevisionProcessor),
}


def shapes(count: int) -> list[tuple[int, int]]:
    """Heights and widths from 16 to 4096, no longer than 1 to 12."""
    generator = random.Random(0)
    found: list[tuple[int, int]] = [(336, 336), (384, 384), (1, 1)]
    while len(found) < count:
        height, width = (int(2 ** generator.uniform(4, 12)) for _ in range(2))
        if 1 / 12 < height / width < 12:
            found.append((height, width))
    return found


def family_and_core(name: str) -> tuple[Any, Any]:
    """A family and as much of a model as packing needs: the configuration of the published one."""
    config, model, _ = KINDS[name]
    core = SimpleNamespace(config=config())
    core.pack_image_features = partial(model.pack_image_features, core)
    return families()[name], core


def layout_and_sources(name: str, size: tuple[int, int]) -> tuple[ImageLayout, Tensor]:
    """The layout of an image, and for each of its tokens the encoder's token behind it (newlines: 0)."""
    family, core = family_and_core(name)
    call = {"image_sizes": torch.tensor([size])}
    side = core.config.vision_config.image_size // core.config.vision_config.patch_size
    (tiles,) = family._tiles(core, call)
    output = SimpleNamespace(pooler_output=[torch.zeros(0)])
    (sources,) = family.spread(core, "image", call, output, torch.arange(tiles * side**2, dtype=torch.float64)[:, None])
    (layout,) = family.layouts(core, "image", call, output)
    return layout, sources[:, 0]


@pytest.mark.parametrize("name", KINDS)
def test_as_many_tokens_as_the_processor_writes(name: str) -> None:
    _, core = family_and_core(name)
    config, processor = core.config, KINDS[name][2]
    tile = config.vision_config.image_size
    fields = SimpleNamespace(
        image_processor=SimpleNamespace(image_grid_pinpoints=config.image_grid_pinpoints),
        patch_size=config.vision_config.patch_size,
        num_additional_image_tokens=0,
        num_image_tokens=(tile // config.vision_config.patch_size) ** 2,
        vision_aspect_ratio=getattr(config, "vision_aspect_ratio", None),
    )
    fields._get_unpadded_features = partial(processor._get_unpadded_features, fields)
    for size in shapes(60):
        layout, sources = layout_and_sources(name, size)
        assert layout.count == len(sources) == processor._get_number_of_features(fields, *size, tile, tile)


@pytest.mark.parametrize("name", KINDS)
def test_crops_show_what_their_boxes_say(name: str) -> None:
    """Every token is in one crop or a newline; a crop's tokens are neighbours in one tile; boxes are true to a patch.

    The model cuts padding away in whole patches, so that a box can be wrong by less than one, and by the pixels at the
    end of a tile that fill no patch.
    """
    _, core = family_and_core(name)
    config = core.config
    tile, patch = config.vision_config.image_size, config.vision_config.patch_size
    side = tile // patch
    for height, width in shapes(60):
        layout, sources = layout_and_sources(name, (height, width))
        assert layout.separators is not None
        times = layout.separators.long()
        for crop in layout.crops:
            times[crop.index] += 1
        assert bool((times == 1).all())
        thumbnail, *tiles = layout.crops
        assert sources[thumbnail.index].tolist() == list(range(side**2))
        high, wide = select_best_resolution((height, width), config.image_grid_pinpoints)
        scale = min(high / height, wide / width)
        shown = (width * scale, height * scale)
        if not bool((sources == sources.round()).all()):
            continue  # made smaller by interpolation: tokens lie between patches
        for crop in tiles:
            (column, row), (left, top) = _place(sources[crop.index], crop, side, wide // tile)
            spare = ((wide - shown[0]) / 2, (high - shown[1]) / 2)
            start = (column * tile + left * patch, row * tile + top * patch)
            stop = (start[0] + crop.grid.columns * patch, start[1] + crop.grid.rows * patch)
            for n, (own, pixel) in enumerate(zip(crop.box, (*start, *stop), strict=True)):
                off = own * shown[n % 2] - (pixel - spare[n % 2])
                assert abs(off) < patch + tile % patch, (height, width, crop.box, start, stop)


def _place(sources: Tensor, crop: Crop, side: int, columns: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Column and row of the tile of a crop, and of its first token in the tile; its tokens must fill a rectangle."""
    tile = sources.long() // side**2 - 1
    assert bool((tile == tile[0]).all())
    inner = sources.long() % side**2
    row, column = inner // side, inner % side
    top, left = int(row[0]), int(column[0])
    expected = (torch.arange(crop.grid.rows)[:, None] + top) * side + torch.arange(crop.grid.columns) + left
    assert torch.equal(inner, expected.flatten())
    return (int(tile[0]) % columns, int(tile[0]) // columns), (left, top)
