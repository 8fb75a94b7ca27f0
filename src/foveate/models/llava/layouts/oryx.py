"""Oryx: an overview and a view of the native size, with learned tokens around them and after every row."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from PIL import Image
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.models.connectors.connector import whole_number
from foveate.models.llava.layouts.layout import View, ViewLayout

BEGIN, NEWLINE, SEPARATOR, END = "<image_begin>", "<image_newline>", "<image_separator>", "<image_end>"


@dataclass(frozen=True)
class OryxLayout(ViewLayout):
    """The whole image twice: an overview in the area of `side` x `side`, and a native view, with a limit to its size.

    With a unit U of `multiple` patches, 32 pixels in the authors' models:

        native view: H x W, of more than `max_side`^2 pixels scaled to this area, sides floored to multiples of U
        overview: the native view scaled to the area `side`^2, sides floored likewise
        prompt: begin, rows of the overview, separator, rows of the native view, end; a newline after every row

    An image with a side below U is enlarged first, so that its shorter side is 2 U. All resizing is bicubic, and the
    overview is made of the native view; of a small image it is the larger of both.

    Oryx MLLM: On-Demand Spatial-Temporal Understanding at Arbitrary Resolution (Liu et al., arXiv 2409.12961), images;
    its layout of clips is not here. The four learned vectors are special tokens of the tokenizer here, whose embeddings
    the language model learns; the authors keep them in the projector, and both give the same sequence. Where their
    checkpoints are read, the vectors become rows of the embeddings. A training of the connector alone leaves them as
    they are. As tokens of text they stay where a plan drops or merges tokens of their row, as the row breaks of
    Mistral 3 do; also with the plan `oryx`, where a model that is configured for this `scale` has a newline for each of
    its fewer rows.

    Args:
        max_side: Side of the square with the greatest area of the native view.
        multiple: Patches of which sides are multiples.
    """

    name: ClassVar[str] = "oryx"

    side: int = 384
    patch_size: int = 16
    max_side: int = 1536
    multiple: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_number("multiple", self.multiple)
        whole_number("side", self.side, self.unit)
        whole_number("max_side", self.max_side, self.side)

    @property
    def texts(self) -> tuple[str, ...]:
        """See `ViewLayout.texts`."""
        return (BEGIN, NEWLINE, SEPARATOR, END)

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """See `ViewLayout.special_tokens`."""
        return self.texts

    @property
    def unit(self) -> int:
        """Pixels of which sides are multiples."""
        return self.multiple * self.patch_size

    @classmethod
    def released(cls, config: Mapping[str, Any], side: int, patch_size: int) -> Self | None:
        """See `ViewLayout.released`: the projector says it; limits are those of the authors' evaluation."""
        return cls(side, patch_size) if config.get("mm_projector_type") == "simple_mlp_twoview" else None

    def views(self, height: int, width: int) -> tuple[View, ...]:
        """See `ViewLayout.views`.

        Raises:
            FoveateError: The image is so long that a side would be below one unit.
        """
        enlarged = self._enlarged(height, width)
        native = self._fit(*enlarged, self.max_side if math.prod(enlarged) > self.max_side**2 else None)
        return (
            View(*self._fit(*native, self.side), "thumbnail", prefix=BEGIN, row_end=NEWLINE, separator=SEPARATOR),
            View(*native, "tile", row_end=NEWLINE, separator=END),
        )

    def cut(self, image: Image.Image, normalize: Callable[[Image.Image], Tensor]) -> list[Tensor]:
        """See `ViewLayout.cut`."""
        overview, native = self.views(image.height, image.width)
        height, width = self._enlarged(image.height, image.width)
        enlarged = image.resize((width, height), Image.Resampling.BICUBIC)
        large = enlarged.resize((native.width, native.height), Image.Resampling.BICUBIC)
        small = large.resize((overview.width, overview.height), Image.Resampling.BICUBIC)
        return [normalize(small), normalize(large)]

    def _enlarged(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of which no side is below a unit."""
        shorter = min(height, width)
        if shorter >= self.unit:
            return height, width
        ratio = 2 * self.unit / shorter
        return int(height * ratio), int(width * ratio)

    def _fit(self, height: int, width: int, side: int | None) -> tuple[int, int]:
        """Height and width, scaled to the area of a square where its side is given, floored to multiples of the unit.

        Raises:
            FoveateError: One of them would be below one unit.
        """
        scale = 1.0 if side is None else math.sqrt(side * side / (height * width))
        fitted = int(height * scale / self.unit) * self.unit, int(width * scale / self.unit) * self.unit
        if min(fitted) < self.unit:
            raise FoveateError(
                f"an image in the proportions of {width} x {height} pixels is too long: a view of the area of {side} x "
                f"{side} pixels would be narrower than {self.unit}."
            )
        return fitted
