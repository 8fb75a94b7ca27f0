"""Base class of layouts: which views of an image the encoder reads, and the text between their tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from PIL import Image
from torch import Tensor

from foveate.core.tokens import Grid
from foveate.models.connectors.connector import whole_number

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class View:
    """A part of an image that the encoder reads as an image of its own.

    Args:
        height: Pixels, after resizing.
        width: Pixels, after resizing.
        kind: "image" (the only view), "tile" (a slice or crop) or "thumbnail" (the whole image next to its tiles).
        box: (left, top, right, bottom) of what it shows, as fractions of the image; beyond 1 is padding.
        separator: Text after its tokens.
        prefix: Text before its tokens.
        row_end: Text after every row of its tokens.
    """

    height: int
    width: int
    kind: Literal["image", "tile", "thumbnail"] = "image"
    box: Box = (0.0, 0.0, 1.0, 1.0)
    separator: str = ""
    prefix: str = ""
    row_end: str = ""


@dataclass(frozen=True)
class ViewLayout(ABC):
    """How a paper shows one image to the model: as several views, whose tokens stand in the prompt with text between.

    Views follow from the size of the image alone, so that processors and servers count placeholders without weights.
    Text between views and rows is written in the prompt, and the model needs no weights of its own for it. Learned
    vectors of a paper are special tokens of the tokenizer.

    Args:
        side: Side in pixels of the square that the encoder was trained on.
        patch_size: Side in pixels of a patch.
    """

    #: Name in configurations.
    name: ClassVar[str]
    #: Whether everything that the encoder reads is `side` x `side`, so that models need no sizes of views.
    one_size: ClassVar[bool] = False

    side: int = 336
    patch_size: int = 14

    def __post_init__(self) -> None:
        whole_number("patch_size", self.patch_size)
        whole_number("side", self.side, self.patch_size)

    @classmethod
    @abstractmethod
    def released(cls, config: Mapping[str, Any], side: int, patch_size: int) -> Self | None:
        """The layout that an authors' `config.json` describes; None: it is another one.

        Args:
            config: Content of the file.
            side: Of the images of the encoder.
            patch_size: Of the encoder.
        """

    @property
    def texts(self) -> tuple[str, ...]:
        """Every text that it writes, each one token of the tokenizer."""
        return (",", "\n")

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """Those of the texts that are special tokens, which a tokenizer may lack."""
        return ()

    @property
    def parts(self) -> int:
        """Images of the encoder that one view is made of, which are stacked: `(views, parts, 3, H, W)` if not 1."""
        return 1

    def crop_grid(self, height: int, width: int) -> Grid | None:
        """Rows and columns of crops, where the first view is the whole image and the others are its crops, row-major.

        Encoders that exchange information between crops of one image read it (`EncoderConfig.crop_options`). None for
        other layouts, whose views are encoded one by one.
        """
        return None

    @abstractmethod
    def views(self, height: int, width: int) -> tuple[View, ...]:
        """Views of an image of this size in pixels, in the order of the prompt."""

    @abstractmethod
    def cut(self, image: Image.Image, normalize: Callable[[Image.Image], Tensor]) -> list[Tensor]:
        """Cut an RGB image into its views.

        Args:
            image: The image.
            normalize: From an image to the pixels `(3, height, width)` that the encoder reads.

        Returns:
            The pixels `(3, height, width)` of every view, or of every part of it.
        """
