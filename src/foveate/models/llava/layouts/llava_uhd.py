"""LLaVA-UHD: slices of nearly the area that the encoder was trained on, and an overview."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from PIL import Image
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.connectors.connector import whole_number
from foveate.models.llava.layouts.layout import View, ViewLayout


@dataclass(frozen=True)
class LlavaUHDLayout(ViewLayout):
    """Slices in rows and columns, each followed by a comma or, at the end of a row, a new line; then the whole image.

    With S the side of the encoder's images:

        n = ceil(W H / S^2), at most `max_slices`; n = 1: one view of area S^2, which has no separator
        (columns m, rows k) of m k in {n - 1, n, n + 1}: the least |log(W / H) - log(m / k)|, the first of equal ones
        slice: area S^2, proportions of a cell, sides floored to multiples of the patch
        whole image: area S^2, its own proportions, sides floored likewise

    LLaVA-UHD: an LMM Perceiving Any Aspect Ratio and High-Resolution Images (Xu et al., arXiv 2403.11703). The image is
    resized once to all its slices (bicubic) and cut. Slices need not be square, so that the encoder interpolates its
    positions. The paper has at most 6 slices, and the authors' code 7, also among the candidates of n + 1. Their first
    code put slices and whole image in one shape and left out the separators; this is their later one.

    Args:
        max_slices: The greatest number of slices.
    """

    name: ClassVar[str] = "llava-uhd"

    max_slices: int = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_number("max_slices", self.max_slices)

    @classmethod
    def released(cls, config: Mapping[str, Any], side: int, patch_size: int) -> Self | None:
        """See `ViewLayout.released`: the projector says it."""
        kinds = ("resampler", "adapt_spatial_resampler", "adapt_spatial_resampler_v1")
        return cls(side, patch_size, max_slices=7) if config.get("mm_projector_type") in kinds else None

    def grid(self, height: int, width: int) -> Grid | None:
        """Rows and columns of slices; None: the image is one view."""
        ideal = min(math.ceil(width * height / self.side**2), self.max_slices)
        if ideal <= 1:
            return None
        counts = [count for count in (ideal - 1, ideal, ideal + 1) if 1 < count <= self.max_slices]
        grids = [Grid(n // columns, columns) for n in counts for columns in range(1, n + 1) if n % columns == 0]
        ratio = math.log(width / height)
        return min(grids, key=lambda grid: abs(ratio - math.log(grid.columns / grid.rows)))

    def views(self, height: int, width: int) -> tuple[View, ...]:
        """See `ViewLayout.views`.

        Raises:
            FoveateError: The image is so long that a side would be below one patch.
        """
        grid, whole = self.grid(height, width), self._fit(height, width)
        if grid is None:
            return (View(*whole),)
        rows, columns = grid
        size = self._fit(max(height // rows, 1), max(width // columns, 1))
        slices = [
            View(
                *size,
                "tile",
                (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows),
                "\n" if column == columns - 1 else ",",
            )
            for row in range(rows)
            for column in range(columns)
        ]
        return (*slices, View(*whole, "thumbnail"))

    def cut(self, image: Image.Image, normalize: Callable[[Image.Image], Tensor]) -> list[Tensor]:
        """See `ViewLayout.cut`."""
        *slices, whole = self.views(image.height, image.width)
        overview = normalize(image.resize((whole.width, whole.height), Image.Resampling.BICUBIC))
        grid = self.grid(image.height, image.width)
        if grid is None:
            return [overview]
        height, width = slices[0].height, slices[0].width
        large = image.resize((grid.columns * width, grid.rows * height), Image.Resampling.BICUBIC)
        corners = [(column * width, row * height) for row in range(grid.rows) for column in range(grid.columns)]
        return [*(normalize(large.crop((x, y, x + width, y + height))) for x, y in corners), overview]

    def _fit(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the area of a square of the encoder, floored to multiples of the patch.

        Raises:
            FoveateError: One of them would be below one patch.
        """
        ratio = width / height
        fitted_height = int(self.side / math.sqrt(ratio))
        sides = fitted_height, int(fitted_height * ratio)
        if min(sides) < self.patch_size:
            raise FoveateError(
                f"an image of {width} x {height} pixels is too long: a view of the area of {self.side} x {self.side} "
                f"pixels would be narrower than a patch of {self.patch_size}."
            )
        return sides[0] // self.patch_size * self.patch_size, sides[1] // self.patch_size * self.patch_size
