"""LLaVA-NeXT and LLaVA-OneVision: a thumbnail and tiles, packed into one unpadded grid with newline tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from foveate.core.errors import FoveateError, Refusal
from foveate.core.tokens import Crop, Grid, Selection
from foveate.families.family import Family, ImageLayout, frame_crops, grid_crop
from foveate.families.llava import check_features, encoder_layers, feature_layer, has_class_embedding

if TYPE_CHECKING:
    from foveate.core.plan import Plan


class LlavaNext(Family):
    """LLaVA-NeXT: positions of tokens are found by letting the model pack values instead of features."""

    name: ClassVar[str] = "llava-next"
    title: ClassVar[str] = "LLaVA-NeXT"
    model_types: ClassVar[tuple[str, ...]] = ("llava_next",)
    example: ClassVar[str] = "llava-hf/llava-v1.6-mistral-7b-hf"
    cls_tokens: ClassVar[tuple[bool, ...]] = (True, False)  # CLIP's encoder has one, SigLIP's has none
    tiled: ClassVar[bool] = True
    patchwise: ClassVar[bool] = True

    def blocks(self, core: Any) -> list[nn.Module]:
        """The encoder's blocks."""
        return list(encoder_layers(core.vision_tower))

    def has_cls(self, core: Any) -> bool:
        """Whether there is a [CLS] token: CLIP has one."""
        return has_class_embedding(core.vision_tower)

    def output_layer(self, core: Any) -> int:
        """The block that `vision_feature_layer` reads."""
        return feature_layer(core, len(self.blocks(core)))

    def layouts(self, core: Any, modality: str, call: Mapping[str, Any], output: Any) -> list[ImageLayout]:
        """Thumbnail and tiles of every image; newlines are separators."""
        packed = self._places(core, call, output.pooler_output[0].device)
        tiles, side = self._tiles(core, call), _side(core)
        sizes = [(int(height), int(width)) for height, width in call["image_sizes"]]
        return [_layout(place, side, count, size) for place, count, size in zip(packed, tiles, sizes, strict=True)]

    def check(self, core: Any, plan: Plan) -> None:
        """See `Family.check`."""
        check_features(self, core, plan)

    def merged(self, core: Any, modality: str, call: Mapping[str, Any], merged: list[Selection]) -> list[Selection]:
        """See `Family.merged`: tiles merge separately; newlines are kept; padding is dropped.

        Tokens of a raster that the model interpolates stand for the patch that they are nearest to.
        """
        side, device = _side(core), merged[0].indices.device
        selections, start = [], 0
        packed = self._places(core, call, device)
        for tiles, place, size in zip(self._tiles(core, call), packed, call["image_sizes"], strict=True):
            tile_members = [part.members(side**2) for part in merged[start : start + tiles]]
            # A number for every patch of every tile that patches of the same row share.
            groups = torch.cat([members + side**2 * tile for tile, members in enumerate(tile_members)])
            selections.append(_selection(groups, place, side, self._shape(core, size)[1] if tiles > 1 else 0))
            start += tiles
        return selections

    def _places(self, core: Any, call: Mapping[str, Any], device: Any) -> list[Tensor]:
        """Row and column (N, 2) of every token of every image in the raster of all tiles; a newline stands at -1.

        The tokens of the thumbnail, at 0, are the first.
        """
        side = _side(core)
        tiles = self._tiles(core, call)
        places = []
        for count, size in zip(tiles, call["image_sizes"], strict=True):
            shape = self._shape(core, size) if count > 1 else (0, 0)
            place = torch.cartesian_prod(*(torch.arange(side * n) for n in shape)).view(-1, 2)
            raster = place.view(shape[0], side, shape[1], side, 2).transpose(1, 2).reshape(-1, side**2, 2)
            places.append(torch.cat([torch.zeros(1, side**2, 2), raster]).to(device, torch.float32))
        return self._pack(core, call, places, torch.full((2,), -1.0, device=device))

    def spread(self, core: Any, modality: str, call: Mapping[str, Any], output: Any, values: Tensor) -> list[Tensor]:
        """What the model makes of values instead of features; newlines get zeros."""
        tile_values = values.unflatten(0, (-1, _side(core) ** 2)).split(self._tiles(core, call))
        return self._pack(core, call, list(tile_values), values.new_zeros(values.shape[1]))

    def per_image(self, core: Any, call: Mapping[str, Any], values: Tensor) -> list[Tensor]:
        """The value of the thumbnail, which is the first of every image."""
        return [image_values[0] for image_values in values.split(self._tiles(core, call))]

    def _tiles(self, core: Any, call: Mapping[str, Any]) -> list[int]:
        """Sequences of the encoder that belong to every image: the thumbnail and its tiles."""
        shapes = [self._shape(core, size) for size in call["image_sizes"]]
        return [1 + rows * columns for rows, columns in shapes]

    def _shape(self, core: Any, size: Any) -> tuple[int, int]:
        """Rows and columns of tiles of an image of a (height, width)."""
        from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape  # slow to import

        config = core.config
        return get_anyres_image_grid_shape(size, config.image_grid_pinpoints, config.vision_config.image_size)

    def _pack(self, core: Any, call: Mapping[str, Any], values: list[Tensor], newline: Tensor) -> list[Tensor]:
        """Values (tiles, patches, C) of every image packed by the model, with `newline` (C,) for newlines: (N, C)."""
        strategy = core.config.vision_feature_select_strategy
        return core.pack_image_features(values, call["image_sizes"], strategy, image_newline=newline)[0]


class LlavaOnevision(LlavaNext):
    """LLaVA-OneVision: a SigLIP tower; rasters over a maximum are made smaller; clips are frames of half the side."""

    name: ClassVar[str] = "llava-onevision"
    title: ClassVar[str] = "LLaVA-OneVision"
    model_types: ClassVar[tuple[str, ...]] = ("llava_onevision",)
    reads_clips: ClassVar[bool] = True
    example: ClassVar[str] = "llava-hf/llava-onevision-qwen2-7b-ov-hf"
    cls_tokens: ClassVar[tuple[bool, ...]] = (False,)

    def layouts(self, core: Any, modality: str, call: Mapping[str, Any], output: Any) -> list[ImageLayout]:
        """As LLaVA-NeXT's; a clip is its frames and one newline at the end."""
        if modality == "image":
            return super().layouts(core, modality, call, output)
        device = output.pooler_output.device
        clips, frames, _, height, width = call["pixel_values_videos"].shape
        side = (_side(core) + 1) // 2
        newline = torch.arange(frames * side**2 + 1, device=device) == frames * side**2
        crops = frame_crops(frames, side, side, device)
        return [ImageLayout(len(newline), crops, newline, (height, width))] * clips

    def merged(self, core: Any, modality: str, call: Mapping[str, Any], merged: list[Selection]) -> list[Selection]:
        """As LLaVA-NeXT's.

        Raises:
            FoveateError: it is a clip, whose frames are pooled behind the encoder.
        """
        if modality != "image":
            raise FoveateError(
                Refusal(
                    "needs-one-token-per-patch",
                    "merging inside the encoder needs every patch to become one token of the language model, and "
                    f"frames of clips are pooled in {self.title}",
                    "give images",
                )
            )
        return super().merged(core, modality, call, merged)

    def spread(self, core: Any, modality: str, call: Mapping[str, Any], output: Any, values: Tensor) -> list[Tensor]:
        """As LLaVA-NeXT's; frames of clips are pooled by the model."""
        if modality == "image":
            return super().spread(core, modality, call, output, values)
        clips = len(call["pixel_values_videos"])
        pooled = core.apply_pooling(values.unflatten(0, (-1, _side(core) ** 2)))
        clip_values = pooled.reshape(clips, -1, values.shape[1])
        return list(torch.cat([clip_values, clip_values.new_zeros(clips, 1, clip_values.shape[2])], dim=1))

    def per_image(self, core: Any, call: Mapping[str, Any], values: Tensor) -> list[Tensor]:
        """As LLaVA-NeXT's; of a clip the first frame."""
        if "pixel_values_videos" in call:
            return [frames[0] for frames in values.chunk(len(call["pixel_values_videos"]))]
        return super().per_image(core, call, values)

    def _tiles(self, core: Any, call: Mapping[str, Any]) -> list[int]:
        """Only images that are alone in their prompt are cut into tiles, where the processor says how many are."""
        counted = super()._tiles(core, call)
        counts = call.get("batch_num_images")
        if counts is None:
            return counted
        alone = [int(count) == 1 for count in counts for _ in range(int(count))]
        return [tiles if single else 1 for tiles, single in zip(counted, alone, strict=True)]

    def _pack(self, core: Any, call: Mapping[str, Any], values: list[Tensor], newline: Tensor) -> list[Tensor]:
        """As LLaVA-NeXT's; what is over the maximum is interpolated."""
        most = call.get("vision_aspect_ratio") or core.config.vision_aspect_ratio
        return core.pack_image_features(values, call["image_sizes"], image_newline=newline, vision_aspect_ratio=most)[0]


def _side(core: Any) -> int:
    """Patches of a side of a tile."""
    return core.config.vision_config.image_size // core.config.vision_config.patch_size


def _layout(place: Tensor, side: int, tiles: int, size: tuple[int, int]) -> ImageLayout:
    """The layout of an image from where its tokens (N, 2) lie in the raster of all tiles, -1 for newlines."""
    device = place.device
    separators = (place < 0).all(dim=1)
    if tiles == 1:
        return ImageLayout(len(place), grid_crop(side, side, device), separators, size)
    thumbnail = Crop(torch.arange(side**2, device=device), Grid(side, side), kind="thumbnail")
    first = side**2
    wide = int(separators.nonzero()[0]) - first + 1  # a row ends with the first newline
    raster = torch.arange(first, len(place), device=device).view(-1, wide)[:, :-1]
    high, wide = raster.shape
    crops = [thumbnail]
    for rows in _runs(place[raster[:, 0], 0], side):
        for columns in _runs(place[raster[0], 1], side):
            index = raster[rows][:, columns]
            box = (columns.start / wide, rows.start / high, columns.stop / wide, rows.stop / high)
            crops.append(Crop(index.flatten(), Grid(*index.shape), box, "tile"))
    return ImageLayout(len(place), tuple(crops), separators, size)


def _selection(groups: Tensor, place: Tensor, side: int, wide: int) -> Selection:
    """What merging left of one image.

    Args:
        groups: (tiles * side^2,) of every patch of the thumbnail and then of the tiles a number that tells its row.
        place: (N, 2) of the image's tokens, see `LlavaNext._places`.
        side: Patches of a side of a tile.
        wide: Columns of tiles; 0: there is the thumbnail alone.
    """
    count = len(place)
    newline = (place < 0).all(dim=1)
    patch = torch.arange(count, device=place.device).clamp(max=side**2 - 1)
    if wide:
        row, column = place.add(0.5).floor().long().clamp(min=0).unbind(dim=1)
        tile = 1 + row // side * wide + column // side
        raster = tile * side**2 + row % side * side + column % side
        patch = torch.where(torch.arange(count, device=place.device) < side**2, patch, raster)
    groups_of_tokens = torch.where(newline, len(groups) + torch.arange(count, device=place.device), groups[patch])
    number = groups_of_tokens.unique(return_inverse=True)[1]
    places = torch.arange(count, device=place.device)
    first = torch.full((int(number.max()) + 1,), count, device=place.device).scatter_reduce(0, number, places, "amin")
    assignment = first.argsort().argsort()[number]
    exact = torch.equal(place, place.round())
    weights = None if exact else 1 / assignment.bincount()[assignment].float()
    return Selection(first.sort().values, assignment=assignment, weights=weights)


def _runs(places: Tensor, side: int) -> list[slice]:
    """Ranges of a line of tokens that lie in the same tile; `places` (n,) ascending are where in the raster they lie.

    A place between two patches, after interpolation, belongs to the tile of the nearer one.
    """
    counts = places.add(0.5).div(side).floor().int().unique_consecutive(return_counts=True)[1].tolist()
    stops = torch.tensor(counts).cumsum(dim=0).tolist()
    return [slice(stop - count, stop) for count, stop in zip(counts, stops, strict=True)]
