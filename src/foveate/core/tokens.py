"""Visual tokens of one image, and selections among them.

A method takes `VisualTokens` and returns a `Selection`. Neither knows of a model or of a batch: the runtime cuts
batches into images before a method and joins them after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from foveate.core.errors import FoveateError, Refusal


class Grid(NamedTuple):
    """Rows and columns of a raster of tokens."""

    rows: int
    columns: int

    @property
    def size(self) -> int:
        """Number of tokens."""
        return self.rows * self.columns


def encoder_grid(config: Any, height: int, width: int) -> Grid:
    """Rows and columns of the tokens of a vision tower, from the size of an image in pixels.

    Args:
        config: Of the tower: an encoder of `foveate.models.encoders`, or a transformer that gives one token per patch.
        height: Of the image.
        width: Of the image.

    Raises:
        FoveateError: an encoder of `foveate.models.encoders` cannot read images of this size.
    """
    if hasattr(config, "output_grid"):
        return config.output_grid(height, width)
    return Grid(height // config.patch_size, width // config.patch_size)


#: Values that a method can request from a probe, besides the features that the language model reads.
NeedKind = Literal[
    "features",  # output of the encoder (after `layer`), before the connector: (N, d)
    "keys",  # keys of a layer averaged over the heads: (N, d / heads)
    "cls_attention",  # attention of the [CLS] token on the patches at a layer, mean over heads: (N,)
    "cls_logits",  # the same before the softmax
    "received",  # attention that a token receives at a layer, mean over heads and queries: (N,)
    "hub_attention",  # attention of hubs, tokens that receive more than `threshold` times the mean, on each: (N,)
    "attention_map",  # attention of every token on every token at a layer, mean over heads: (N, N), expensive
    "cls_feature",  # encoder output of the [CLS] token: (d,)
    "instruction",  # embeddings of the user's own words as the language model reads them: (T, D)
    "text_feature",  # the prompt in the joint space of a contrastive text encoder (given by the user): (d,)
    "first_layer_attention",  # attention of the user's own words in the first decoder layer, mean over heads: (N,)
    "pixels",  # the image as input of the encoder, 0 to 1: (3, height, width)
]


class Need(NamedTuple):
    """Something that a method needs of a probe.

    Args:
        kind: What; see `NeedKind`.
        layer: Block of the encoder, 0-based, or negative from the end (-1: the last). `None` where it does not matter.
        substitute: Whether attention received may stand in for the [CLS] row where an encoder has no [CLS] token;
            papers that define this substitute say so.
        threshold: For "hub_attention".
    """

    kind: NeedKind
    layer: int | None = None
    substitute: bool = False
    threshold: float = 0.0


@dataclass(frozen=True)
class EncoderSpec:
    """What a method may know of an encoder before anything has run.

    Args:
        num_layers: Blocks.
        has_cls: Whether there is a [CLS] token.
        merge: Encoder tokens that make one token of the language model (4 for a 2 x 2 merger).
        output_layer: Block (0-based) whose output becomes the tokens: CLIP in LLaVA-1.5 has 24 blocks and uses 22.
        spatial: Whether tokens of the language model stand for parts of the image; those of learned queries do not.
    """

    num_layers: int
    has_cls: bool
    merge: int = 1
    output_layer: int = -1
    spatial: bool = True

    def layer(self, layer: int | None) -> int:
        """A layer counted from the start; of one that is counted from the end too. None: the one that is used.

        Raises:
            FoveateError: the encoder has no such layer.
        """
        layer = self.output_layer if layer is None else layer
        index = layer + self.num_layers if layer < 0 else layer
        if not 0 <= index < self.num_layers:
            raise FoveateError(
                Refusal(
                    "no-such-layer",
                    f"the encoder has {self.num_layers} blocks (0 to {self.num_layers - 1}), not {layer}",
                )
            )
        return index

    @property
    def last_used(self) -> int:
        """The block whose output becomes the tokens, counted from the start."""
        return self.layer(None)


@dataclass(frozen=True)
class Crop:
    """A rectangle of tokens within an image: the image itself, its thumbnail, one of its tiles, or a frame of a clip.

    Args:
        index: (n,) indices of its tokens among the tokens of the image, row-major; -1 for padding.
        grid: Rows and columns; rows * columns = n.
        box: (left, top, right, bottom) of what it shows, as fractions of the image; may reach beyond 0..1 when
            the crop shows padding.
        kind: "image" (a single crop), "thumbnail", "tile" or "frame".
    """

    index: Tensor
    grid: Grid
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    kind: Literal["image", "thumbnail", "tile", "frame"] = "image"

    @cached_property
    def present(self) -> Tensor:
        """Indices (m,) of the tokens that exist, without padding, in row-major order."""
        return self.index[self.index >= 0]


@dataclass(frozen=True)
class VisualTokens:
    """The tokens of one image or clip, as input of a method.

    Args:
        features: (N, D), what the language model would read, in its order.
        crops: The rectangles they come from. A plain image has one.
        measured: Values that probes measured, by `Need`; every value is aligned with the N tokens, where a merger made
            one token of several by their mean. Separators carry zeros.
        separators: (N,) bool, tokens of the layout, such as newlines between rows.
        size: (height, width) of the image in pixels, where known.
        number: Which image of its prompt this is, for seeds.
        tower: The encoder, so that a method can name its needs again: `tokens.get(*self.needs(tokens.tower))`.
        timestamps: (T,) float32, seconds from the start of the video at which each crop of a clip was recorded, the
            mean where one crop shows several frames; None where neither the model call nor the prompt says it.
    """

    features: Tensor
    crops: tuple[Crop, ...]
    measured: Mapping[Need, Tensor] = field(default_factory=dict)
    separators: Tensor | None = None
    size: tuple[int, int] | None = None
    number: int = 0
    tower: EncoderSpec = EncoderSpec(1, False)
    timestamps: Tensor | None = None

    @classmethod
    def of_grid(cls, features: Tensor, grid: tuple[int, int] | Grid, **fields: Any) -> VisualTokens:
        """Tokens (N, D) of a plain image of `grid` rows and columns.

        Raises:
            FoveateError: the grid does not have N cells.
        """
        grid = Grid(*grid)
        if features.ndim != 2 or len(features) != grid.size:
            raise FoveateError(f"features {tuple(features.shape)} do not fill a grid of {grid.rows} x {grid.columns}.")
        index = torch.arange(grid.size, device=features.device)
        return cls(features, (Crop(index, grid),), **fields)

    def __len__(self) -> int:
        return len(self.features)

    @property
    def grid(self) -> Grid:
        """Rows and columns of the only crop.

        Raises:
            FoveateError: there are several crops.
        """
        if len(self.crops) != 1:
            raise FoveateError(f"an image of {len(self.crops)} crops has no single grid.")
        return self.crops[0].grid

    @property
    def thumbnail(self) -> Crop | None:
        """The crop that shows the whole image small, None for a plain image."""
        return next((crop for crop in self.crops if crop.kind == "thumbnail"), None)

    @property
    def is_clip(self) -> bool:
        """Whether these are frames of a clip. A clip of one frame is a plain image."""
        return all(crop.kind == "frame" for crop in self.crops)

    @cached_property
    def frame_indices(self) -> Tensor:
        """(T, N) indices of the tokens of every frame of a clip, row-major; an image is a clip of one frame.

        Raises:
            FoveateError: the tokens are those of tiles, or frames lack tokens, as after another method.
        """
        if len(self.crops) == 1:
            return self.crops[0].present[None]
        index = [crop.index for crop in self.crops]
        if not self.is_clip or len({crop.grid for crop in self.crops}) > 1 or bool((torch.cat(index) < 0).any()):
            raise FoveateError(
                Refusal(
                    "needs-whole-frames",
                    "frames can be compared with each other only while all of them have all of their tokens",
                    "let a method for clips be the first step of a plan",
                )
            )
        return torch.stack(index)

    @property
    def frames(self) -> Tensor:
        """(T, N, D) features of the frames of a clip; an image is a clip of one frame.

        Raises:
            FoveateError: as `frame_indices`.
        """
        return self.features[self.frame_indices]

    @property
    def device(self) -> torch.device:
        """Where the features are."""
        return self.features.device

    def get(self, need: Need) -> Tensor:
        """What a probe measured.

        Raises:
            FoveateError: it was not measured: the method did not declare that it needs it.
        """
        if need not in self.measured:
            raise FoveateError(f"{need} was not measured; a method must name it in `needs`.")
        return self.measured[need]

    def part(self, crop: Crop) -> VisualTokens:
        """The tokens of one crop as an image of its own; its padding is dropped.

        The grid of the part is the crop's; where tokens are missing, `crops[0].index` is -1.
        """
        indices = crop.present
        if len(indices) == len(crop.index):
            index = torch.arange(len(indices), device=indices.device)
        else:
            index = torch.full_like(crop.index, -1)
            index[crop.index >= 0] = torch.arange(len(indices), device=indices.device)
        measured = {n: v if n.kind in _WHOLE else _rows(n, v, indices) for n, v in self.measured.items()}
        times = None
        if self.timestamps is not None:
            number = next(number for number, own in enumerate(self.crops) if own is crop)
            times = self.timestamps[number : number + 1]
        return replace(
            self,
            features=self.features[indices],
            crops=(Crop(index, crop.grid, crop.box, "image"),),
            measured=measured,
            separators=None,
            timestamps=times,
        )

    def take(self, selection: Selection) -> VisualTokens:
        """The tokens that a selection leaves, for a method that comes after it."""
        place = torch.full((len(self) + 1,), -1, dtype=torch.int64, device=self.device)
        place[selection.indices] = torch.arange(len(selection), device=self.device)
        crops = tuple(replace(crop, index=place[crop.index]) for crop in self.crops)  # -1 finds the last one, -1 again
        measured = {n: v if n.kind in _WHOLE else _rows(n, v, selection.indices) for n, v in self.measured.items()}
        return replace(
            self,
            features=selection.apply(self.features) if selection.features is None else selection.features,
            crops=crops,
            measured=measured,
            separators=None if self.separators is None else self.separators[selection.indices],
        )


#: Kinds that are not one value a token.
_WHOLE = ("instruction", "text_feature", "cls_feature", "pixels")


def _rows(need: Need, value: Tensor, indices: Tensor) -> Tensor:
    return value[indices][:, indices] if need.kind == "attention_map" else value[indices]


@dataclass(frozen=True)
class PlacedRaster:
    """Places of tokens in the smaller raster that their image was mapped to.

    Args:
        grid: Rows and columns of the smaller raster, of every frame of a clip.
        places: (k,) int64 the cell of each token, row-major.
    """

    grid: Grid
    places: Tensor


@dataclass(frozen=True)
class Selection:
    """The tokens that stay, and the rows that replace them.

    Args:
        indices: (k,) int64, ascending: the tokens that stay. A merged token takes the index of one of its members.
        features: (k, D) of these rows; None: the original features at `indices`.
        assignment: (N,) int64: for every original token the row (0 to k - 1) that it went into, or -1 when it was
            dropped. None: no token was merged.
        weights: (N,) share of every original token in the row it went into; the shares of a row sum to 1 (None: equal
            shares). DeepStack planes are merged with them, and pictures show them.
        positions: (k, K) int64: original tokens whose positions a row carries, where a method gives it more than its
            own (PPE). None: the position of `indices`.
        remade: Computes `features` from the tokens' features (N, D), for gradients, where these are no means with the
            shares above: maxima, or something with weights of the method's own in it.
        raster: Places of the rows in a smaller raster, where the features were mapped to one.
    """

    indices: Tensor
    features: Tensor | None = None
    assignment: Tensor | None = None
    weights: Tensor | None = None
    positions: Tensor | None = None
    remade: Callable[[Tensor], Tensor] | None = field(default=None, repr=False, compare=False)
    raster: PlacedRaster | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def sources(self, row: int) -> Tensor:
        """The original tokens that went into a row, ascending."""
        if self.assignment is None:
            return self.indices[row : row + 1]
        return (self.assignment == row).nonzero().flatten()

    def apply(self, features: Tensor) -> Tensor:
        """Other features (N, d) of the same tokens, chosen or merged like the selection's own: (k, d).

        Differentiable in the features.
        """
        if self.assignment is None:
            return features[self.indices]
        used = self.assignment >= 0
        rows = self.assignment[used]
        if self.weights is None:
            share = 1 / rows.bincount(minlength=len(self))[rows].to(wide(features[:0]).dtype)
        else:
            share = self.weights[used].to(wide(features[:0]).dtype)
        mass = wide(features[used]) * share[:, None]
        return mass.new_zeros(len(self), features.shape[1]).index_add(0, rows, mass).to(features.dtype)

    def then(self, later: Selection, count: int) -> Selection:
        """This selection of `count` tokens and, of what it left, a later one, as one selection."""
        assignment = weights = None
        if self.assignment is not None or later.assignment is not None:
            first, second = self.members(count), later.members(len(self))
            assignment = torch.where(first >= 0, second[first.clamp(min=0)], -1)
            weights = self._shares(count) * torch.where(first >= 0, later._shares(len(self))[first.clamp(min=0)], 0)
        features = later.features
        if features is None and self.features is not None:
            features = later.apply(self.features)
        positions = later.positions if later.positions is None else self.indices[later.positions]
        raster = self.raster
        if raster is not None:
            raster = PlacedRaster(raster.grid, raster.places[later.indices])
        return Selection(self.indices[later.indices], features, assignment, weights, positions, raster=raster)

    def members(self, count: int) -> Tensor:
        """(count,) the row that every original token went into, -1 for those that were dropped."""
        if self.assignment is not None:
            return self.assignment
        members = torch.full((count,), -1, dtype=torch.int64, device=self.indices.device)
        members[self.indices] = torch.arange(len(self), device=self.indices.device)
        return members

    def _shares(self, count: int) -> Tensor:
        if self.weights is not None:
            return self.weights
        members = self.members(count)
        sizes = members[members >= 0].bincount(minlength=len(self)).clamp(min=1)
        return torch.where(members >= 0, 1 / sizes[members.clamp(min=0)].float(), 0.0)

    def check(self, count: int, name: str = "a method") -> None:
        """Refuse an invalid selection of `count` tokens. On a GPU this synchronises once.

        Raises:
            FoveateError: indices are not ascending, repeat or are out of range, or another part does not fit them. The
                method is wrong then, not its user.
        """
        indices, rows = self.indices, len(self.indices)
        if indices.dtype != torch.int64 or indices.ndim != 1:
            raise FoveateError(f"{name} gave {indices.dtype} places of {indices.ndim} dimensions, not int64 of one.")
        if rows:
            ascend = (indices[1:] > indices[:-1]).all()
            if not bool(ascend & (indices[0] >= 0) & (indices[-1] < count)):
                raise FoveateError(
                    f"{name} chose {rows} places, {len(indices.unique())} of them different, from {int(indices.min())} "
                    f"to {int(indices.max())}; places ascend, stand once each and lie within 0 to {count - 1}."
                )
        for part, value, expected in (
            ("rows of features", self.features, rows),
            ("assigned tokens", self.assignment, count),
            ("weights", self.weights, count),
            ("rows of positions", self.positions, rows),
        ):
            if value is not None and len(value) != expected:
                raise FoveateError(f"{name} gave {len(value)} {part} where there are {expected}.")


def check_finite(name: str, values: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse numbers that are not finite: what is chosen by them would be chosen by chance, or twice.

    Every value is read once, and on a GPU this waits once for all.

    Args:
        name: Of the method, for the message.
        values: What each is called, and the value; whole numbers are passed over.

    Raises:
        FoveateError: one of them holds NaN or infinity.
    """
    floating = [(what, value) for what, value in values if value.numel() and value.is_floating_point()]
    if not floating:
        return
    device = floating[0][1].device
    ends = [end.isfinite().to(device) for _, value in floating for end in value.detach().aminmax()]
    if bool(torch.stack(ends).all()):
        return
    what, value = next((what, value) for what, value in floating if not bool(value.isfinite().all()))
    rows = (~value.isfinite()).reshape(len(value), -1).any(dim=1).nonzero().flatten().tolist()
    raise FoveateError(
        f"{name} cannot choose: the {what} are not finite ({len(rows)} of {len(value)} rows hold NaN or infinity, the "
        f"first is row {rows[0]}); check the image, the weights and the precision of the model."
    )


def wide(x: Tensor) -> Tensor:
    """The same numbers in the precision that sums of them are taken in: float64 stays, all else becomes float32."""
    return x if x.dtype == torch.float64 else x.float()


def in_order(selection: Selection, features: Tensor, order: Tensor) -> Selection:
    """A selection whose rows the language model reads in another order, as some authors' codes hand them on.

    Indices stay ascending; the row that is read first gets the first of them, whatever it was made of. Positions
    that are counted anew follow; original positions are those of the indices.

    Args:
        selection: Of k rows.
        features: (N, D) of the tokens that were chosen from.
        order: (k,) the rows in the order in which they are read.
    """
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    rows = features[selection.indices] if selection.features is None else selection.features
    members = selection.members(len(features))
    assignment = torch.where(members >= 0, rank[members.clamp(min=0)], -1)
    positions = None if selection.positions is None else selection.positions[order]
    return Selection(selection.indices, rows[order], assignment, selection.weights, positions)


def select_tokens(indices: Tensor) -> Selection:
    """The tokens at `indices` (any order) as they are."""
    return Selection(indices.sort().values)


def ranked(scores: Tensor, count: int) -> Tensor:
    """Indices (count,) of the highest scores, these first; of equal scores the first wins, on every device."""
    return scores.argsort(descending=True, stable=True)[:count]


def topk_indices(scores: Tensor, count: int) -> Tensor:
    """Indices (count,) of the highest scores, ascending; of equal scores the first wins, on every device."""
    return ranked(scores, count).sort().values


def other_indices(indices: Tensor, count: int) -> Tensor:
    """Indices (count - k,) below `count` that are not among `indices` (k,), ascending; waits for no device."""
    others = torch.ones(count, dtype=torch.int8, device=indices.device).index_fill_(0, indices, 0)
    return ranked(others, count - len(indices))


def merge_tokens(features: Tensor, indices: Tensor, assignment: Tensor, weights: Tensor | None = None) -> Selection:
    """A selection whose rows are weighted means of the tokens assigned to them.

    Args:
        features: (N, D).
        indices: (k,) ascending, of the rows.
        assignment: (N,) row of every token, -1 for dropped ones. Every row needs a member.
        weights: (N,) not negative; they are normalised within a row. None: plain mean.
    """
    used = assignment >= 0
    rows = assignment[used]
    x = wide(features[used])
    share = torch.ones_like(rows, dtype=x.dtype) if weights is None else weights[used].to(x.dtype)
    total = share.new_zeros(len(indices)).index_add_(0, rows, share)
    share = share / total.clamp(min=torch.finfo(torch.float32).tiny)[rows]
    out = x.new_zeros(len(indices), features.shape[1]).index_add_(0, rows, x * share[:, None])
    shares = share.new_zeros(len(features))
    shares[used] = share
    return Selection(indices, out.to(features.dtype), assignment, shares)
