"""What the runtime asks of a model family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.core.tokens import Crop, EncoderSpec, Grid, Selection

if TYPE_CHECKING:
    from foveate.core.plan import Plan


@dataclass(frozen=True)
class ImageLayout:
    """How the tokens of one image or clip are laid out, before any of them is left out.

    Args:
        count: Tokens N that the language model reads.
        crops: The rectangles they come from.
        separators: (N,) bool, newline tokens and the like; None: there are none.
        size: (height, width) in pixels as the encoder saw it, where known.
    """

    count: int
    crops: tuple[Crop, ...]
    separators: Tensor | None = None
    size: tuple[int, int] | None = None


class Family(ABC):
    """One family of models: where its seam, its encoder and its image tokens are.

    `core` is the model without its output layer (`model.model` in `transformers`, the class of `AutoModel`): it encodes
    images, puts their tokens among the text, and calls its language model with `inputs_embeds`. `call` is what
    `get_image_features` or `get_video_features` was called with, by name, and `output` what it returned.
    """

    #: Name in listings.
    name: ClassVar[str]
    #: What users call it.
    title: ClassVar[str]
    #: `config.model_type` of its models.
    model_types: ClassVar[tuple[str, ...]]
    #: Attribute of the core that holds the language model.
    language_model: ClassVar[str] = "language_model"
    #: Hub id of one of its models, as the documentation of `transformers` names it.
    example: ClassVar[str] = ""
    #: Whether the processor needs torchvision for images too, not for clips alone.
    needs_torchvision: ClassVar[bool] = False
    #: Whether encoders of its models have a [CLS] token: of all (True,) or none (False,); (True, False): of some.
    cls_tokens: ClassVar[tuple[bool, ...]] = (False,)
    #: Encoder tokens that make one token of the language model, for towers whose merger is of fixed size.
    merge: ClassVar[int] = 1
    #: Whether every patch becomes one token of the language model, by itself: methods inside the encoder need that.
    patchwise: ClassVar[bool] = False
    #: Whether an image is several sequences of the encoder, its tiles, which together have one budget.
    tiled: ClassVar[bool] = False
    #: Which of an image's tiles shows all of it, in families whose tiles are budgeted as images of their own.
    whole_tile: ClassVar[Literal["first", "last"] | None] = None
    #: Whether the language model's first layer can be asked what it looks at: it attends, with rotary positions that
    #: are those of all layers.
    first_layer: ClassVar[bool] = True
    #: Whether the layers of the language model take sequences that get shorter from one to the next: all attend, with
    #: keys and values of their own.
    decoder: ClassVar[bool] = True
    #: Token type of what is answered, in models that are given token types.
    answer_type: ClassVar[int] = 0

    def core(self, model: nn.Module) -> Any:
        """The model without its output layer, or whatever a model for retrieval or classes puts on it."""
        names = ("model", "vlm")
        return next((inner for name in names if (inner := getattr(model, name, None)) is not None), model)

    def text(self, core: Any) -> nn.Module:
        """The language model inside the core."""
        return getattr(core, self.language_model)

    def placeholder(self, core: Any, modality: str) -> int | None:
        """Id of the token that stands for "image" or "video" tokens; None where the family has none."""
        return getattr(core.config, f"{modality}_token_id", None)

    # The encoder

    def vision_tower(self, core: Any) -> nn.Module:
        """The encoder."""
        return core.vision_tower

    @abstractmethod
    def blocks(self, core: Any) -> list[nn.Module]:
        """The encoder's blocks."""

    def attention(self, block: nn.Module) -> nn.Module:
        """The attention module of a block; it has a `config` and calls the attention function named there."""
        names = ("self_attn", "attn", "attention")
        return next(getattr(block, name) for name in names if hasattr(block, name))

    def has_cls(self, core: Any) -> bool:
        """Whether the encoder's sequences begin with a [CLS] token."""
        return False

    def output_layer(self, core: Any) -> int:
        """The block whose output becomes the tokens, 0-based."""
        return len(self.blocks(core)) - 1

    def tower(self, core: Any) -> EncoderSpec:
        """What methods may know of the encoder."""
        return EncoderSpec(len(self.blocks(core)), self.has_cls(core), self.merge, self.output_layer(core))

    def check(self, core: Any, plan: Plan) -> None:
        """Refuse a plan that acts on tokens which this model, as it is configured, does not have.

        Raises:
            FoveateError: the geometry is one that is not known, or not one for this plan.
        """
        del core, plan  # as far as this class knows, any will do

    def grids(self, core: Any, modality: str, call: Mapping[str, Any]) -> list[Grid] | None:
        """Rows and columns of tokens of every image of a call, before it is made; None where images are no raster."""
        return None

    def shrink(self, core: Any, modality: str, call: Mapping[str, Any], grids: Sequence[Grid]) -> dict[str, Any]:
        """The arguments of a call with every image made smaller, to rasters of `grids` tokens."""
        raise NotImplementedError  # only called where `grids` gives some

    # Tokens

    @abstractmethod
    def layouts(self, core: Any, modality: str, call: Mapping[str, Any], output: Any) -> list[ImageLayout]:
        """The layout of every image of a call."""

    def spread(self, core: Any, modality: str, call: Mapping[str, Any], output: Any, values: Tensor) -> list[Tensor]:
        """Values (T, C) of the encoder's tokens, in its order and without [CLS], as values of the tokens: (N, C) each.

        Where a merger makes one token of `merge` consecutive ones, it gets their mean.
        """
        merged = values if self.merge == 1 else values.unflatten(0, (-1, self.merge)).mean(dim=1)
        return list(merged.split(self.counts(output)))

    def merged(self, core: Any, modality: str, call: Mapping[str, Any], merged: list[Selection]) -> list[Selection]:
        """What merging left of every sequence of the encoder as what it left of every image.

        `weights` are given where the tokens of a row are not equal, and are to be averaged.
        """
        return merged

    def per_image(self, core: Any, call: Mapping[str, Any], values: Tensor) -> list[Tensor]:
        """Values (sequences, C), one for every sequence of the encoder, as one value (C,) an image.

        Of a tiled image the first sequence counts, which is the thumbnail.
        """
        return list(values)

    def counts(self, output: Any) -> list[int]:
        """Tokens of every image."""
        return [len(features) for features in output.pooler_output]

    # The language model

    def text_positions(self, positions: Tensor | None) -> Tensor | None:
        """(B, L) the position ids by which the language model tells samples of one row apart; None where it does not.

        Args:
            positions: What the language model is given: (B, L), (3, B, L) for time, height and width, or (4, B, L),
                where those of plain text stand before them.
        """
        if positions is None or positions.ndim == 2:
            return positions
        return positions[0] if len(positions) == 4 else None

    def mask(self, core: Any, arguments: Mapping[str, Any], types: Tensor | None, images: bool) -> Any:
        """The attention mask of the shortened sequence.

        Families whose image tokens see each other in both directions build their masks in the core, from the long
        sequence; they override this and build them again from the short one.

        Args:
            core: The model.
            arguments: What the language model will be called with; `attention_mask` is (B, P), of all cached and new
                positions.
            types: (B, P) token types of all positions, where the core was given some; of cached ones it may not have
                been given them, and they are `answer_type`.
            images: Whether the core was given pixels.
        """
        return arguments["attention_mask"]


def grid_crop(rows: int, columns: int, device: Any = None) -> tuple[Crop, ...]:
    """A plain image of rows x columns tokens."""
    return (Crop(torch.arange(rows * columns, device=device), Grid(rows, columns)),)


def frame_crops(frames: int, rows: int, columns: int, device: Any = None) -> tuple[Crop, ...]:
    """A clip: one crop a frame; a single frame is a plain image."""
    if frames == 1:
        return grid_crop(rows, columns, device)
    places = torch.arange(frames * rows * columns, device=device).view(frames, -1)
    return tuple(Crop(own, Grid(rows, columns), kind="frame") for own in places)


def resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (n, C, height, width) at another (height, width), bicubic and antialiased."""
    small = F.interpolate(pixels.float(), size, mode="bicubic", antialias=True, align_corners=False)
    return small.to(pixels.dtype)


def pool(values: Tensor, grid: Grid, side: int) -> Tensor:
    """Means of squares of side x side cells of a raster, values (rows * columns, C) row-major.

    Rows and columns at the end that fill no square are left out, as mergers do.
    """
    rows, columns = grid.rows // side, grid.columns // side
    raster = values.view(grid.rows, grid.columns, -1)[: rows * side, : columns * side]
    return raster.reshape(rows, side, columns, side, -1).mean(dim=(1, 3)).flatten(0, 1)


def shrink_patches(patches: Tensor, old: Grid, new: Grid) -> Tensor:
    """Row-major patches (rows * columns, C, p, p) of an image, of the same image made smaller."""
    _, channels, height, width = patches.shape
    image = patches.view(*old, channels, height, width).permute(2, 0, 3, 1, 4)
    small = resize(image.reshape(1, channels, old.rows * height, -1), (new.rows * height, new.columns * width))
    return small.view(channels, new.rows, height, new.columns, width).permute(1, 3, 0, 2, 4).flatten(0, 1)
