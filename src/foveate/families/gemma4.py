"""Gemma 4: native resolution, patches with coordinates and mean pooling; per-layer embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foveate import compat
from foveate.core.tokens import EncoderSpec, Grid
from foveate.families.family import Family, ImageLayout, frame_crops, shrink_patches
from foveate.families.llava import encoder_layers


class Gemma4(Family):
    """Gemma 4: one grid per image or frame, in its aspect ratio; larger models attend bidirectionally within images."""

    name: ClassVar[str] = "gemma4"
    title: ClassVar[str] = "Gemma 4"
    model_types: ClassVar[tuple[str, ...]] = ("gemma4",)
    reads_clips: ClassVar[bool] = True
    example: ClassVar[str] = "google/gemma-4-e2b-it"
    decoder: ClassVar[bool] = False
    written_times: ClassVar = "before"
    first_layer: ClassVar[bool] = False  # positions are rotated differently in sliding and in full layers

    def blocks(self, core: Any) -> list[nn.Module]:
        """The encoder's blocks."""
        return list(encoder_layers(core.vision_tower))

    def tower(self, core: Any) -> EncoderSpec:
        """The side of the squares that are pooled is a matter of configuration."""
        blocks = len(self.blocks(core))
        return EncoderSpec(blocks, False, _side(core) ** 2, blocks - 1)

    def grids(self, core: Any, modality: str, call: Mapping[str, Any]) -> list[Grid] | None:
        """A raster an image; clips are none."""
        return _grids(core, _coordinates(modality, call)) if modality == "image" else None

    def shrink(self, core: Any, modality: str, call: Mapping[str, Any], grids: Sequence[Grid]) -> dict[str, Any]:
        """Patches of smaller images, filled up to the same number."""
        side, patch = _side(core), core.config.vision_config.patch_size
        pixels, places = call["pixel_values"], call["image_position_ids"]
        sizes = [Grid(side * grid.rows, side * grid.columns) for grid in grids]
        longest = max(size.size for size in sizes)
        small = pixels.new_zeros(len(pixels), longest, pixels.shape[-1])
        at = places.new_full((len(pixels), longest, 2), -1)
        for image, (old, new) in enumerate(zip(_grids(core, places), sizes, strict=True)):
            patches = pixels[image, _present(places[image])].unflatten(-1, (patch, patch, -1)).permute(0, 3, 1, 2)
            cut = shrink_patches(patches, Grid(side * old.rows, side * old.columns), new)
            small[image, : new.size] = cut.permute(0, 2, 3, 1).flatten(1)
            columns, rows = torch.arange(new.columns), torch.arange(new.rows)
            at[image, : new.size] = torch.cartesian_prod(rows, columns).flip(-1).to(at)
        return {**call, "pixel_values": small, "image_position_ids": at}

    def layouts(self, core: Any, modality: str, call: Mapping[str, Any], output: Any) -> list[ImageLayout]:
        """A raster an image, one a frame of a clip."""
        grids = _grids(core, _coordinates(modality, call))
        frames = [1] * len(grids) if modality == "image" else call["num_frames_per_video"].tolist()
        pixels, device = _side(core) * core.config.vision_config.patch_size, output.pooler_output[0].device
        layouts, start = [], 0
        for count in frames:
            rows, columns = grids[start]  # frames of a clip are of one size
            crops = frame_crops(count, rows, columns, device)
            layouts.append(ImageLayout(count * rows * columns, crops, size=(rows * pixels, columns * pixels)))
            start += count
        return layouts

    def spread(self, core: Any, modality: str, call: Mapping[str, Any], output: Any, values: Tensor) -> list[Tensor]:
        """Means of the patches that are pooled, by their coordinates."""
        side, places = _side(core), _coordinates(modality, call).to(values.device)
        pooled = []
        images = values.view(len(places), -1, values.shape[-1])
        for image_values, at, grid in zip(images, places, _grids(core, places), strict=True):
            present = _present(at)
            column, row = (at[present] // side).unbind(-1)
            total = values.new_zeros(grid.size, values.shape[-1])
            pooled.append(total.index_add_(0, row * grid.columns + column, image_values[present]) / side**2)
        return list(torch.cat(pooled).split(self.counts(output)))

    def mask(self, core: Any, arguments: Mapping[str, Any], types: Tensor | None, images: bool) -> Any:
        """Bidirectional within an image or frame in sliding-window layers, if the configuration says so."""
        from transformers import Gemma4ForConditionalGeneration  # slow to import

        return Gemma4ForConditionalGeneration.create_masks_for_generate(
            core.config,
            arguments["inputs_embeds"],
            arguments["attention_mask"],
            compat.cache_in(arguments),
            arguments["position_ids"],
            mm_token_type_ids=types,
        )


def _side(core: Any) -> int:
    """Side of the square of patches that becomes one token."""
    return core.config.vision_config.pooling_kernel_size


def _coordinates(modality: str, call: Mapping[str, Any]) -> Tensor:
    """(images or frames, patches, 2), column and row of every patch, -1 for what fills up."""
    return call[f"{modality}_position_ids"]


def _present(places: Tensor) -> Tensor:
    """Which patches (patches, 2) are of the image."""
    return (places >= 0).all(dim=-1)


def _grids(core: Any, places: Tensor) -> list[Grid]:
    """Rows and columns of tokens of every image or frame."""
    sizes = ((places.amax(dim=1) + 1) // _side(core)).tolist()
    return [Grid(rows, columns) for columns, rows in sizes]
