"""LLaVA-Mini in high resolution: sub-images and the whole image, of which the connector makes the same few tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from PIL import Image
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.models.connectors.connector import whole_number
from foveate.models.llava.layouts.layout import View, ViewLayout
from foveate.models.llava.layouts.squares import CLIP_COLOUR, Colour, checked_colour, cropped_square, padded_square

FITS = ("crop", "pad")


@dataclass(frozen=True)
class LlavaMiniLayout(ViewLayout):
    """k x k sub-images of equal size and the whole image, stacked as one image of the model.

    Sub-images are cut first, of floor(H / k) x floor(W / k) pixels, and each of them and the whole image is made a
    square of the encoder's side by itself: cropped in the middle or padded. All of them are one image of the prompt:
    the connector `llava_mini` compresses the stitched features of the sub-images, and its pre-fusion reads them and
    those of the whole image.

    LLaVA-Mini: Efficient Image and Video Large Multimodal Models with One Vision Token (Zhang et al., arXiv
    2501.03895), where k = 2 in high resolution. As in the authors' code for inference; with `pad` their code for
    training pads the whole image before it is cut. Without `image_aspect_ratio` in their configuration squares are
    cropped, so that the ends of a long image are in no sub-image.

    Args:
        ratio: k, from 2 on.
        fit: "crop" or "pad".
        background: Red, green and blue from 0 to 255 around padded parts.
    """

    name: ClassVar[str] = "llava-mini"
    one_size: ClassVar[bool] = True

    ratio: int = 2
    fit: str = "crop"
    background: Colour = CLIP_COLOUR

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_number("ratio", self.ratio, 2)
        if self.fit not in FITS:
            raise FoveateError(f"fit must be {' or '.join(FITS)}, not {self.fit!r}.")
        object.__setattr__(self, "background", checked_colour(self.background))

    @property
    def texts(self) -> tuple[str, ...]:
        """See `ViewLayout.texts`: none."""
        return ()

    @property
    def parts(self) -> int:
        """See `ViewLayout.parts`."""
        return self.ratio**2 + 1

    @classmethod
    def released(cls, config: Mapping[str, Any], side: int, patch_size: int) -> Self | None:
        """See `ViewLayout.released`: `resolution_ratio` says it."""
        if "compressor_size" not in config or config.get("resolution_ratio", 1) == 1:
            return None
        fit = "pad" if config.get("image_aspect_ratio") == "pad" else "crop"
        return cls(side, patch_size, config["resolution_ratio"], fit)

    def views(self, height: int, width: int) -> tuple[View, ...]:
        """See `ViewLayout.views`: one, of all parts.

        Raises:
            FoveateError: The image has a side of fewer pixels than sub-images.
        """
        if min(height, width) < self.ratio:
            raise FoveateError(f"an image of {width} x {height} pixels has no {self.ratio} x {self.ratio} sub-images.")
        return (View(self.side, self.side),)

    def cut(self, image: Image.Image, normalize: Callable[[Image.Image], Tensor]) -> list[Tensor]:
        """See `ViewLayout.cut`; sub-images row-major, and the whole image last."""
        self.views(image.height, image.width)
        width, height = image.width // self.ratio, image.height // self.ratio
        corners = [(column * width, row * height) for row in range(self.ratio) for column in range(self.ratio)]
        parts = [*(image.crop((x, y, x + width, y + height)) for x, y in corners), image]
        return [normalize(self._square(part)) for part in parts]

    def _square(self, part: Image.Image) -> Image.Image:
        return (
            cropped_square(part, self.side) if self.fit == "crop" else padded_square(part, self.side, self.background)
        )
