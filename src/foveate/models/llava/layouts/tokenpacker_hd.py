"""TokenPacker-HD: square crops of a padded image, and the whole image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from foveate.core.tokens import Grid, ranked
from foveate.models.connectors.connector import whole_number
from foveate.models.llava.layouts.layout import View, ViewLayout

#: The longest single row or column of crops.
LONGEST_LINE = 9
#: The image is taken as this many times larger where its overlap with a canvas is measured.
ENLARGED = 1.4
OVERLAP_WEIGHT = 0.1


@dataclass(frozen=True)
class TokenPackerHDLayout(ViewLayout):
    """Crops of one size in rows and columns: a comma between two of a row, a new line after the row; then the image.

    Of all R x C with R C <= `max_crops` (a single row or column has at most 9), the one of the greatest

        share of the canvas (R S, C S) that the image fills when it is resized to fit
        + 0.1 * intersection over union of the canvas and 1.4 times the image, with one corner in common

    The image is resized to fit the canvas, lies at its top left, and the rest is the mean colour. The whole image comes
    last and is followed by a new line; an image of a single crop has no second view, and a new line after the first.

    TokenPacker: Efficient Visual Projector for Multimodal LLM (Li et al., arXiv 2407.02392), with crops of S = 336
    pixels, at most 9, 16 or 25. The numbers of tokens in the paper ("about 954 at 1088 x 1088") are means over data;
    an image has a fixed number. As in the authors' code, on which the released weights are trained, images are resized
    bilinearly without antialiasing, and the last view is the padded canvas, not the image, resized to the size that
    would fit the image.

    Args:
        max_crops: The greatest number of crops.
    """

    name: ClassVar[str] = "tokenpacker-hd"

    max_crops: int = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_number("max_crops", self.max_crops)

    @classmethod
    def released(cls, config: Mapping[str, Any], side: int, patch_size: int) -> Self | None:
        """See `ViewLayout.released`: `image_aspect_ratio` says it."""
        if config.get("mm_projector_type") != "tokenpacker" or config.get("image_aspect_ratio") != "slice":
            return None
        return cls(side, patch_size, max_crops=int(config.get("patch_num", 9)))

    def grid(self, height: int, width: int) -> Grid:
        """Rows and columns of crops."""
        grids = [
            Grid(rows, count // rows)
            for count in range(1, self.max_crops + 1)
            for rows in range(1, count + 1)
            if count % rows == 0 and (1 < rows < count or count <= LONGEST_LINE)
        ]
        # In float32, as in the authors' code, so that near ties are decided alike.
        canvas = torch.tensor(grids) * self.side
        area = canvas.prod(dim=1)
        scale = (canvas / torch.tensor([height, width])).amin(dim=1)
        filled = (height * scale).round() * (width * scale).round() / area
        enlarged = torch.tensor([height, width]) * ENLARGED
        shared = torch.minimum(canvas, enlarged).prod(dim=1)
        overlap = shared / (area + enlarged.prod() - shared)
        return grids[int(ranked(filled + OVERLAP_WEIGHT * overlap, 1))]

    def views(self, height: int, width: int) -> tuple[View, ...]:
        """See `ViewLayout.views`."""
        side, (rows, columns) = self.side, self.grid(height, width)
        high, wide = _fit(height, width, rows * side, columns * side)
        crops = [
            View(
                side,
                side,
                "tile" if rows * columns > 1 else "image",
                (column * side / wide, row * side / high, (column + 1) * side / wide, (row + 1) * side / high),
                "\n" if column == columns - 1 else ",",
            )
            for row in range(rows)
            for column in range(columns)
        ]
        if len(crops) == 1:
            return tuple(crops)
        small_high, small_wide = _fit(height, width, side, side)
        right, bottom = columns * side * side / (wide * small_wide), rows * side * side / (high * small_high)
        return (*crops, View(side, side, "thumbnail", (0.0, 0.0, right, bottom), "\n"))

    def cut(self, image: Image.Image, normalize: Callable[[Image.Image], Tensor]) -> list[Tensor]:
        """See `ViewLayout.cut`."""
        size, side = (image.height, image.width), self.side
        rows, columns = self.grid(*size)
        canvas = _on_canvas(normalize(image), _fit(*size, rows * side, columns * side), (rows * side, columns * side))
        crops = [part for row in canvas.split(side, dim=1) for part in row.split(side, dim=2)]
        if len(crops) == 1:
            return crops
        return [*crops, _on_canvas(canvas, _fit(*size, side, side), (side, side))]


def _fit(height: int, width: int, canvas_height: int, canvas_width: int) -> tuple[int, int]:
    """Height and width of an image that is resized to fit a canvas."""
    by_height, by_width = canvas_height / height, canvas_width / width
    if by_height <= by_width:
        return canvas_height, max(1, min(canvas_width, round(width * by_height)))
    return max(1, min(canvas_height, round(height * by_width))), canvas_width


def _on_canvas(pixels: Tensor, size: tuple[int, int], canvas: tuple[int, int]) -> Tensor:
    """Resize pixels `(3, H, W)` and lay them at the top left of zeros `(3, *canvas)`."""
    resized = F.interpolate(pixels[None], size, mode="bilinear", align_corners=False)[0]
    return F.pad(resized, (0, canvas[1] - size[1], 0, canvas[0] - size[0]))
