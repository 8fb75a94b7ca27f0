"""Preprocessing rules: patches and language-model tokens of an image by its size.

The rules are those of the processors; if `transformers` has a function for a rule, it is called.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid, encoder_grid

#: Longest side of an image, in pixels; what is longer than this is a slip of the hand.
LONGEST = 65536


@dataclass(frozen=True)
class ProcessedImage:
    """Patch grids and token count of an image after preprocessing.

    Args:
        grids: Rows and columns of patches of every sequence of the encoder.
        tokens: Tokens of the language model, newline tokens too.
        raster: Rows and columns of these tokens, where one sequence makes all of them.
        parts: Sequences of the encoder that the connector reads as one image: k x k sub-images and the whole one.
        crops: Rows and columns of crops after the whole image, where the encoder reads all of them together.
    """

    grids: tuple[Grid, ...]
    tokens: int
    raster: Grid | None = None
    parts: int = 1
    crops: Grid | None = None

    @property
    def patches(self) -> int:
        """Number of patches of all sequences."""
        return sum(grid.size for grid in self.grids)


def processed_image(config: Any, width: int, height: int, images: Any = None) -> ProcessedImage:
    """Apply the preprocessing rule of a model to an image size.

    Args:
        config: The model's configuration, of a family in `shapes.families()`.
        width: In pixels.
        height: In pixels.
        images: The model's image processor; released settings by default.

    Raises:
        FoveateError: the size is no size, or the family has no rule here.
    """
    if not (1 <= width <= LONGEST and 1 <= height <= LONGEST):
        raise FoveateError(f"an image of {width} x {height} pixels cannot be counted; sides are 1 to {LONGEST:,}.")
    rule = _RULES.get(config.model_type)
    if rule is None:
        raise FoveateError(
            f"foveate has no rule for how {config.model_type!r} models cut an image, give the tokens with --tokens; "
            f"it has for {', '.join(sorted(_RULES))}."
        )
    return rule(config, width, height, images)


def _one(rows: int, columns: int, side: int) -> ProcessedImage:
    """One sequence in which side x side patches become one token."""
    raster = Grid(rows // side, columns // side)
    return ProcessedImage((Grid(rows, columns),), raster.size, raster)


def _fixed(config: Any, width: int, height: int, images: Any) -> ProcessedImage:
    """LLaVA-1.5: every image is resized to a square."""
    side = config.vision_config.image_size // config.vision_config.patch_size
    return _one(side, side, 1)


def _foveate_llava(config: Any, width: int, height: int, images: Any) -> ProcessedImage:
    """LLaVA of foveate: a square, or the views that the processor cuts; the connector sets their tokens."""
    from foveate.models.connectors.registry import connector_of_sizes, options_of_config

    vision = config.vision_config
    patch, side = vision.patch_size, vision.image_size
    layout = getattr(images, "view_layout", None)
    sizes = [(side, side)] if layout is None else [(view.height, view.width) for view in layout.views(height, width)]
    connector = connector_of_sizes(config.connector_type, options_of_config(config))
    rasters = [connector.output_grid(encoder_grid(vision, *size)) for size in sizes]
    parts = 1 if layout is None else layout.parts
    patches = tuple(Grid(high // patch, wide // patch) for high, wide in sizes for _ in range(parts))
    return ProcessedImage(
        patches,
        sum(raster.size for raster in rasters),
        rasters[0] if len(rasters) == 1 else None,
        parts,
        None if layout is None else layout.crop_grid(height, width),
    )


def _anyres(config: Any, width: int, height: int, images: Any) -> ProcessedImage:
    """LLaVA-NeXT and LLaVA-OneVision: a thumbnail and tiles; rows of the tiles end in a newline token."""
    from transformers.image_processing_utils import select_best_resolution

    tile, patch = config.vision_config.image_size, config.vision_config.patch_size
    points = getattr(images, "image_grid_pinpoints", None) or config.image_grid_pinpoints
    rows, columns = (length // tile for length in select_best_resolution((height, width), points))
    side = tile // patch
    high, wide = side * rows, side * columns
    if width / height > wide / high:  # the padding above and below is cropped
        high -= (high - int(round(height * (wide / width), 7))) // 2 * 2
    else:
        wide -= (wide - int(round(width * (high / height), 7))) // 2 * 2
    if config.model_type == "llava_onevision":
        most = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
        ratio = math.sqrt(high * wide / (most * side**2))
        if ratio > 1.1:
            high, wide = int(high // ratio), int(wide // ratio)
    return ProcessedImage((Grid(side, side),) * (1 + rows * columns), side**2 + high * (wide + 1))


def _qwen(config: Any, width: int, height: int, images: Any) -> ProcessedImage:
    """Qwen-VL: sides are multiples of a token's, and the area is within two bounds."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    vision = config.vision_config
    unit = vision.patch_size * vision.spatial_merge_size
    least, most = (65536, 16777216) if config.model_type == "qwen3_vl" else (3136, 12845056)
    size = getattr(images, "size", None) or {}
    least, most = size.get("shortest_edge") or least, size.get("longest_edge") or most
    try:
        high, wide = smart_resize(height, width, unit, least, most)
    except ValueError as error:
        raise FoveateError(f"an image of {width} x {height} pixels is refused by the model: {error}.") from error
    return _one(high // vision.patch_size, wide // vision.patch_size, vision.spatial_merge_size)


def _internvl(config: Any, width: int, height: int, images: Any) -> ProcessedImage:
    """InternVL: tiles in the proportions of the image, and a thumbnail if there is more than one."""
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    high, wide = config.vision_config.image_size
    patch_high, patch_wide = config.vision_config.patch_size
    least, most = getattr(images, "min_patches", None) or 1, getattr(images, "max_patches", None) or 12
    columns, rows = get_optimal_tiled_canvas((height, width), (high, wide), least, most)
    tiles = rows * columns
    tiles += tiles > 1
    grid, side = Grid(high // patch_high, wide // patch_wide), round(1 / config.downsample_ratio)
    tile = _one(grid.rows, grid.columns, side)
    return tile if tiles == 1 else ProcessedImage((grid,) * tiles, tiles * tile.tokens)


def _uhd(config: Any, width: int, height: int, images: Any) -> ProcessedImage:
    """LLaVA-UHD v3: native resolution; with another encoder, too."""
    from foveate.models.connectors.registry import connector_of_sizes, options_of_config
    from foveate.models.llava_uhd.configuration import token_multiple
    from foveate.models.llava_uhd.native_size import native_size

    vision = config.vision_config
    connector = connector_of_sizes(config.connector_type, options_of_config(config))
    if images is not None:
        wide, high = images.target_size(width, height)
    else:
        unit = {"patch_size": config.square_size, "num_stages": getattr(vision, "num_stages", 0)}
        wide, high = native_size(width, height, **unit, token_multiple=token_multiple(vision, connector))
    patches = Grid(high // vision.patch_size, wide // vision.patch_size)
    tokens = connector.output_grid(encoder_grid(vision, high, wide))
    return ProcessedImage((patches,), tokens.size, tokens)


def _slices(config: Any, width: int, height: int, images: Any) -> ProcessedImage:
    """LLaVA-UHD v4 as in MiniCPM-V 4.6: a thumbnail and slices."""
    from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil

    images = images or MiniCPMV4_6ImageProcessorPil()
    patch, scale = images.patch_size, images.scale_resolution
    # Before transformers 5.21 there was this mode alone, and no argument for it.
    named = "downsample_mode" in signature(images.find_best_resize).parameters
    mode: dict[str, Any] = {"downsample_mode": "16x"} if named else {}
    cut = images.get_sliced_grid((height, width), images.max_slice_nums, scale) if images.slice_mode else None
    thumbnail = images.find_best_resize((height, width), scale, patch, **mode, allow_upscale=cut is None)
    grids = [Grid(thumbnail[0] // patch, thumbnail[1] // patch)]
    if cut is not None:
        fine = images.get_refine_size((height, width), cut, scale, patch, **mode, allow_upscale=True)
        grids += [Grid(fine[0] // cut[0] // patch, fine[1] // cut[1] // patch)] * (cut[0] * cut[1])
    if len(grids) == 1:
        return _one(*grids[0], 4)
    return ProcessedImage(tuple(grids), sum(grid.size // 16 for grid in grids))


_RULES: dict[str, Callable[[Any, int, int, Any], ProcessedImage]] = {
    "foveate_llava": _foveate_llava,
    "internvl": _internvl,
    "llava": _fixed,
    "llava_next": _anyres,
    "llava_onevision": _anyres,
    "llava_uhd": _uhd,
    "minicpmv4_6": _slices,
    "qwen2_vl": _qwen,
    "qwen2_5_vl": _qwen,
    "qwen3_vl": _qwen,
}
