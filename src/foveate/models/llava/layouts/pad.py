"""LLaVA-1.5: the image in the middle of a square of the mean colour."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from PIL import Image
from torch import Tensor

from foveate.models.llava.layouts.layout import View, ViewLayout
from foveate.models.llava.layouts.squares import CLIP_COLOUR, Colour, checked_colour, padded_square, padding


@dataclass(frozen=True)
class PadLayout(ViewLayout):
    """One view: the image padded to a square, with nothing cut off and its proportions kept.

    `image_aspect_ratio: pad` of released LLaVA, with which LLaVA-1.5 was trained (Liu et al., arXiv 2310.03744). The
    square is filled before it is resized (bicubic), as in the authors' code.

    Args:
        background: Red, green and blue from 0 to 255; the default is the mean colour of CLIP's images.
    """

    name: ClassVar[str] = "pad"
    one_size: ClassVar[bool] = True

    background: Colour = CLIP_COLOUR

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "background", checked_colour(self.background))

    @property
    def texts(self) -> tuple[str, ...]:
        """See `ViewLayout.texts`: none."""
        return ()

    @classmethod
    def released(cls, config: Mapping[str, Any], side: int, patch_size: int) -> Self | None:
        """See `ViewLayout.released`: `image_aspect_ratio` says it."""
        return cls(side, patch_size) if config.get("image_aspect_ratio") == "pad" else None

    def views(self, height: int, width: int) -> tuple[View, ...]:
        """See `ViewLayout.views`."""
        top, left = padding(height, width)
        side = max(height, width)
        box = (-left / width, -top / height, (side - left) / width, (side - top) / height)
        return (View(self.side, self.side, box=box),)

    def cut(self, image: Image.Image, normalize: Callable[[Image.Image], Tensor]) -> list[Tensor]:
        """See `ViewLayout.cut`."""
        return [normalize(padded_square(image, self.side, self.background))]
