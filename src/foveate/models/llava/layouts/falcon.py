"""FALCON: the whole image, and square crops of it in a grid that suits its shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from PIL import Image
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.connectors.connector import whole_number
from foveate.models.encoders.falcon import crop_grid
from foveate.models.llava.layouts.layout import View, ViewLayout

OVERVIEW = "<global_img>"


@dataclass(frozen=True)
class FalconLayout(ViewLayout):
    """The whole image as a square, then R x C crops of one size, each after a token that names its row and column.

    The image is stretched to (R S, C S), S being the side of the encoder's images, and cut; R x C with at most
    `max_crops` crops suits the shape of the image, and then its size (`encoders.falcon.crop_grid`). The whole image is
    stretched to S x S, and has a view of its own also where there is one crop. All resizing is bicubic.

    FALCON: Resolving Visual Redundancy and Fragmentation in High-resolution Multimodal Large Language Models via Visual
    Registers (Zhang et al., arXiv 2501.16297). For the encoder `falcon_vision`, whose registers attend to those of the
    other crops and know the row and the column of their own; other encoders read every crop alone. The authors write
    the names of crops as text of several tokens; here they are special tokens of the tokenizer. Their release has at
    most 9 crops where the configuration does not say otherwise, and their paper 16.

    Args:
        max_crops: The greatest number of crops; not above that of the encoder.
        indicators: Whether a token with row and column stands before the tokens of a crop.
    """

    name: ClassVar[str] = "falcon"

    side: int = 384
    patch_size: int = 16
    max_crops: int = 16
    indicators: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_number("max_crops", self.max_crops)
        if not isinstance(self.indicators, bool):
            raise FoveateError(f"indicators must be true or false, not {self.indicators!r}.")

    @property
    def texts(self) -> tuple[str, ...]:
        """See `ViewLayout.texts`: the whole image, and every row and column that a crop can have."""
        if not self.indicators:
            return ()
        lines = range(self.max_crops)
        places = [(row, column) for row in lines for column in lines if (row + 1) * (column + 1) <= self.max_crops]
        return (OVERVIEW, *(_name(*place) for place in places))

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """See `ViewLayout.special_tokens`."""
        return self.texts

    @classmethod
    def released(cls, config: Mapping[str, Any], side: int, patch_size: int) -> Self | None:
        """See `ViewLayout.released`: None, as the authors' whole models have a layout of files of their own."""
        return None

    def crop_grid(self, height: int, width: int) -> Grid:
        """See `ViewLayout.crop_grid`."""
        return crop_grid(height, width, self.side, self.max_crops)

    def views(self, height: int, width: int) -> tuple[View, ...]:
        """See `ViewLayout.views`."""
        rows, columns = self.crop_grid(height, width)
        whole = View(self.side, self.side, "thumbnail", prefix=OVERVIEW if self.indicators else "")
        crops = [
            View(
                self.side,
                self.side,
                "tile",
                (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows),
                prefix=_name(row, column) if self.indicators else "",
            )
            for row in range(rows)
            for column in range(columns)
        ]
        return (whole, *crops)

    def cut(self, image: Image.Image, normalize: Callable[[Image.Image], Tensor]) -> list[Tensor]:
        """See `ViewLayout.cut`."""
        side, (rows, columns) = self.side, self.crop_grid(image.height, image.width)
        whole = normalize(image.resize((side, side), Image.Resampling.BICUBIC))
        large = normalize(image.resize((columns * side, rows * side), Image.Resampling.BICUBIC))
        return [whole, *(part for row in large.split(side, dim=1) for part in row.split(side, dim=2))]


def _name(row: int, column: int) -> str:
    """The token before a crop."""
    return f"<crop_img_row{row}_col{column}>"
