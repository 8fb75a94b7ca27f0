"""The interface of a model family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.core.connector import ConnectorMethod
from foveate.core.errors import FoveateError, Refusal
from foveate.core.image import ImageMethod, kept_positions
from foveate.core.tokens import Crop, EncoderSpec, Grid, Selection

if TYPE_CHECKING:
    from foveate.core.plan import Plan


#: What methods may measure without the encoder.
OUTSIDE_ENCODER = ("instruction", "text_feature", "first_layer_attention", "pixels")


@dataclass(frozen=True)
class ImageLayout:
    """Layout of the tokens of one image or clip, before pruning.

    Args:
        count: Tokens N that the language model reads.
        crops: The rectangles they come from.
        separators: (N,) bool, newline tokens and the like; None: there are none.
        size: (height, width) in pixels as the encoder saw it, where known.
        timestamps: (T,) float32 seconds of the crops of a clip; None: they are not known.
    """

    count: int
    crops: tuple[Crop, ...]
    separators: Tensor | None = None
    size: tuple[int, int] | None = None
    timestamps: Tensor | None = None


class Family(ABC):
    """Adapter of one model family: its language model, encoder and image tokens.

    `core` is the model without its output layer (`model.model` in `transformers`, the class of `AutoModel`): it encodes
    images, puts their tokens among the text, and calls its language model with `inputs_embeds`. `call` is what
    `get_image_features` or `get_video_features` was called with, by name, and `output` what it returned.
    """

    #: Name in listings.
    name: ClassVar[str]
    #: Name for users.
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
    #: Whether its models read clips.
    reads_clips: ClassVar[bool] = False
    #: Whether values of the encoder's patches can be mapped to the tokens of the language model.
    measures_encoder: ClassVar[bool] = True
    #: Encoder tokens per token of the language model, for towers with a merger of fixed size.
    merge: ClassVar[int] = 1
    #: Whether every patch becomes one token of the language model, which methods inside the encoder need.
    patchwise: ClassVar[bool] = False
    #: Whether models have a connector of `foveate.models.connectors`, as `multi_modal_projector` of the core.
    connectors: ClassVar[bool] = False
    #: Where the raster of an image's features can be mapped to a smaller one: before a projector that maps every token
    #: by itself, or after the merger. None: nowhere.
    raster_features: ClassVar[Literal["before-projector", "after-merger"] | None] = None
    #: Whether an image is several sequences of the encoder, its tiles, which share one budget.
    tiled: ClassVar[bool] = False
    #: The tile that shows the whole image, in families whose tiles are budgeted as separate images.
    whole_tile: ClassVar[Literal["first", "last"] | None] = None
    #: Whether first-layer attention can be computed: the layer has attention, with rotary positions that
    #: are those of all layers.
    first_layer: ClassVar[bool] = True
    #: Whether the sequence can be pruned between the layers of the language model: all have attention, with
    #: keys and values of their own.
    decoder: ClassVar[bool] = True
    #: Where a prompt says the time of a frame, next to the tokens of the frame; None: it says none.
    written_times: ClassVar[Literal["before", "after"] | None] = None
    #: Token type of answers, in models with token types.
    answer_type: ClassVar[int] = 0

    def core(self, model: nn.Module) -> Any:
        """The model without its output layer or task head."""
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
        """Specification of the encoder, for methods."""
        return EncoderSpec(len(self.blocks(core)), self.has_cls(core), self.merge, self.output_layer(core))

    def nested_part(self, core: Any) -> Any:
        """What a plan chooses the length of: the connector, in models with a connector of foveate."""
        return core.multi_modal_projector

    def check(self, core: Any, plan: Plan) -> None:
        """Refuse a plan that does not fit this model's configuration.

        Raises:
            FoveateError: the token geometry is unknown or does not fit the plan, or the connector has one length alone.
        """
        if self.connectors:
            check_connector(self.nested_part(core), plan)

    def grids(self, core: Any, modality: str, call: Mapping[str, Any]) -> list[Grid] | None:
        """Token grids of the images of a call, before it runs; None where images are not single grids.

        Of a clip it is the grid of each of its `frames`.
        """
        return None

    def frames(self, core: Any, modality: str, call: Mapping[str, Any]) -> list[int] | None:
        """Grids of every image of a call that has `grids`: the frames of a clip. None: one of each."""
        return None

    def shrink(self, core: Any, modality: str, call: Mapping[str, Any], grids: Sequence[Grid]) -> dict[str, Any]:
        """Downscale the images, and all frames of clips, in the arguments of a call to grids of `grids` tokens."""
        raise NotImplementedError  # only called where `grids` returns grids

    def encoder_grids(self, core: Any, call: Mapping[str, Any]) -> list[Grid]:
        """Grids of what the connector reads, for every image of a call."""
        raise NotImplementedError  # only called where `connectors`

    def projector(self, core: Any) -> nn.Module:
        """The module that maps features to embeddings of the language model."""
        return core.multi_modal_projector

    # Tokens

    @abstractmethod
    def layouts(self, core: Any, modality: str, call: Mapping[str, Any], output: Any) -> list[ImageLayout]:
        """The layout of every image of a call."""

    def spread(self, core: Any, modality: str, call: Mapping[str, Any], output: Any, values: Tensor) -> list[Tensor]:
        """Map values (T, C) of the encoder's tokens, in its order and without [CLS], to the image tokens: (N, C) each.

        Where a merger makes one token of `merge` consecutive ones, it gets their mean.
        """
        merged = values if self.merge == 1 else values.unflatten(0, (-1, self.merge)).mean(dim=1)
        return list(merged.split(self.counts(output)))

    def merged(self, core: Any, modality: str, call: Mapping[str, Any], merged: list[Selection]) -> list[Selection]:
        """Map the selections of the encoder's sequences after merging to selections of images.

        `weights` are given where the tokens of a row are not equal, and are to be averaged.
        """
        return merged

    def per_image(self, core: Any, call: Mapping[str, Any], values: Tensor) -> list[Tensor]:
        """Map values (sequences, C), one per sequence of the encoder, to one value (C,) per image.

        Of a tiled image the first sequence counts, which is the thumbnail.
        """
        return list(values)

    def counts(self, output: Any) -> list[int]:
        """Tokens of every image."""
        return [len(features) for features in output.pooler_output]

    def timestamps(self, core: Any, arguments: Mapping[str, Any], clip: int, clips: int, frames: int) -> Tensor | None:
        """(T,) float32 seconds of the crops of a clip, from the arguments of the model; None: they do not say it.

        Args:
            core: The model.
            arguments: What it was called with.
            clip: Index of the clip.
            clips: Clips of the call; arguments of prompts that are repeated for beams are repeated clip by clip.
            frames: Crops T of the clip.
        """
        return None

    # The language model

    def text_positions(self, positions: Tensor | None) -> Tensor | None:
        """(B, L) the position ids by which the language model separates packed samples; None where it does not.

        Args:
            positions: Position ids of the language model: (B, L), (3, B, L) for time, height and width, or (4, B, L),
                with text positions before them.
        """
        if positions is None or positions.ndim == 2:
            return positions
        return positions[0] if len(positions) == 4 else None

    def mask(self, core: Any, arguments: Mapping[str, Any], types: Tensor | None, images: bool) -> Any:
        """The attention mask of the pruned sequence.

        Families with bidirectional attention among image tokens build their masks in the core, from the full
        sequence; they override this and build them from the pruned one.

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
    """The crop of a plain image of rows x columns tokens."""
    return (Crop(torch.arange(rows * columns, device=device), Grid(rows, columns)),)


def frame_crops(frames: int, rows: int, columns: int, device: Any = None) -> tuple[Crop, ...]:
    """The crops of a clip, one per frame; a single frame is a plain image."""
    if frames == 1:
        return grid_crop(rows, columns, device)
    places = torch.arange(frames * rows * columns, device=device).view(frames, -1)
    return tuple(Crop(indices, Grid(rows, columns), kind="frame") for indices in places)


def resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize images (n, C, height, width), bicubic and antialiased."""
    small = F.interpolate(pixels.float(), size, mode="bicubic", antialias=True, align_corners=False)
    return small.to(pixels.dtype)


def pool(values: Tensor, grid: Grid, side: int) -> Tensor:
    """Mean-pool a grid of values (rows * columns, C), row-major, over squares of side x side cells.

    Rows and columns at the end that fill no square are dropped, as mergers do.
    """
    rows, columns = grid.rows // side, grid.columns // side
    raster = values.view(grid.rows, grid.columns, -1)[: rows * side, : columns * side]
    return raster.reshape(rows, side, columns, side, -1).mean(dim=(1, 3)).flatten(0, 1)


def shrink_patches(patches: Tensor, old: Grid, new: Grid) -> Tensor:
    """Downscale an image given as row-major patches (rows * columns, C, p, p)."""
    _, channels, height, width = patches.shape
    image = patches.view(*old, channels, height, width).permute(2, 0, 3, 1, 4)
    small = resize(image.reshape(1, channels, old.rows * height, -1), (new.rows * height, new.columns * width))
    return small.view(channels, new.rows, height, new.columns, width).permute(1, 3, 0, 2, 4).flatten(0, 1)


def check_connector(connector: Any, plan: Plan) -> None:
    """Refuse a plan that chooses the length of a connector or encoder that has one alone, or is of another kind.

    Also one that reduces images, whose tokens stand for no part of them: a smaller image has as many.

    Raises:
        FoveateError: as said.
    """
    step = plan.steps[0]
    method = step.method
    if isinstance(method, ImageMethod) and not connector.spatial:
        raise FoveateError(
            Refusal(
                "needs-one-raster",
                f"{method.name} makes images smaller, and the connector {connector.name} gives as many tokens for them",
                "choose a method that acts before the language model",
            )
        )
    if not isinstance(method, ConnectorMethod):
        return
    if not connector.nested or method.connector not in (None, connector.name):
        wanted = "a nested connector" if method.connector is None else f"the connector {method.connector}"
        raise FoveateError(
            Refusal(
                "needs-nested-connector",
                f"{method.name} needs {wanted}, and this model has {connector.name}",
                "choose a method that acts before the language model",
            )
        )
    if step.budget is None:
        raise FoveateError(
            Refusal(
                "needs-budget",
                f"{method.name} needs a budget where the model has the connector {connector.name}",
                f"write one, such as {method.name}:64",
            )
        )


def spread_by(connector: Any, values: Tensor, grid: Grid) -> Tensor:
    """Map values (N, C) of the tokens that a connector reads to the tokens that it gives: means over their regions.

    Args:
        connector: A connector of `foveate.models.connectors`.
        values: Of an image, row-major.
        grid: Rows and columns of the values.

    Raises:
        FoveateError: its tokens do not stand for equal rectangles of the image.
    """
    output = connector.output_grid(grid)
    if not connector.spatial or grid.rows % output.rows or grid.columns % output.columns:
        raise FoveateError(
            Refusal(
                "needs-equal-regions",
                f"the connector {connector.name} makes {output.rows} x {output.columns} tokens of {grid.rows} x "
                f"{grid.columns}, which are no equal rectangles that values of the encoder could be averaged over",
                "choose a method that measures nothing in the encoder",
            )
        )
    raster = values.view(output.rows, grid.rows // output.rows, output.columns, grid.columns // output.columns, -1)
    return raster.mean(dim=(1, 3)).flatten(0, 1)


def places_at_length(connector: Any, grid: Grid, count: int) -> Tensor:
    """Places (count,) of the tokens of a nested connector at a length, among those that it gives by default.

    Those of the parts of the image that tokens stand for, where they do, else the first ones.

    Args:
        connector: A nested part of a model; see `Family.nested_part`.
        grid: Rows and columns of what it reads.
        count: Tokens, at most the default.

    Raises:
        FoveateError: it cannot give so many.
    """
    default, reduced = connector.output_grid(grid), connector.output_grid(grid, count)
    fits = connector.spatial and reduced.rows <= default.rows and reduced.columns <= default.columns
    return kept_positions(default, reduced, count)[1] if fits else torch.arange(count)


def grid_before(connector: Any, grid: Grid) -> Grid:
    """The grid that a connector makes `grid` of, with equal factors for rows and columns.

    Raises:
        FoveateError: there is none.
    """
    for side in range(1, 33):
        before = Grid(grid.rows * side, grid.columns * side)
        if before.rows % connector.multiple == before.columns % connector.multiple == 0:
            with suppress(FoveateError):
                if connector.output_grid(before) == grid:
                    return before
    raise FoveateError(
        Refusal(
            "needs-one-raster",
            f"no image has {grid.rows} x {grid.columns} tokens after the connector {connector.name}",
            "choose a method that acts before the language model",
        )
    )
