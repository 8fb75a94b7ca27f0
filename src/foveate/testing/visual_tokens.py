"""Random visual tokens with values of every kind of need, for tests without a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from foveate.core.pre_llm import PreLLMMethod
from foveate.core.tokens import Crop, EncoderSpec, Grid, Need, VisualTokens

#: CLIP ViT-L as LLaVA reads it, and an encoder without [CLS] whose last block is read.
CLIP = EncoderSpec(24, True, output_layer=-2)
PLAIN = EncoderSpec(12, False)

WIDTH, KEYS, WORDS = 8, 6, 5


def measured(need: Need, size: int, generator: torch.Generator, width: int = WIDTH) -> Tensor:
    """Random values (float32) of the shape that a probe gives for `size` tokens."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    match need.kind:
        case "features":
            return normal(size, width)
        case "keys":
            return normal(size, KEYS)
        case "cls_attention" | "received" | "hub_attention" | "first_layer_attention":
            return normal(size).softmax(dim=0)
        case "cls_logits":
            return normal(size)
        case "attention_map":
            return normal(size, size).softmax(dim=1)
        case "cls_feature" | "text_feature":
            return normal(width)
        case "instruction":
            return normal(WORDS, width)
        case "pixels":
            return torch.rand(3, 28, 28, generator=generator)
    raise AssertionError(f"no values for {need.kind}: add them here")


def tied(tokens: VisualTokens, levels: int = 3) -> VisualTokens:
    """The same image with features and scores of few different values."""
    values = {
        need: value if need.kind == "pixels" else torch.floor(value * levels / value.abs().amax().clamp(min=1e-9))
        for need, value in tokens.measured.items()
    }
    return replace(tokens, features=tokens.features.sign(), measured=values)


def measure(method: PreLLMMethod, tokens: VisualTokens, seed: int = 0) -> VisualTokens:
    """The image with what the method needs of its tower; separators carry zeros, as from a probe."""
    generator = torch.Generator().manual_seed(seed)
    values = {
        need: measured(need, len(tokens), generator, tokens.features.shape[1]) for need in method.needs(tokens.tower)
    }
    if tokens.separators is not None:
        for value in values.values():
            if len(value) == len(tokens):
                value[tokens.separators] = 0
    return replace(tokens, measured=values)


def plain(rows: int, columns: int, tower: EncoderSpec = CLIP, seed: int = 0) -> VisualTokens:
    """A plain image of random features."""
    features = torch.randn(rows * columns, WIDTH, generator=torch.Generator().manual_seed(seed))
    return VisualTokens.of_grid(features, (rows, columns), tower=tower, size=(14 * rows, 14 * columns))


def tiled(
    side: int = 4,
    layout: tuple[int, int] = (2, 2),
    cut: tuple[int, int] = (1, 0),
    newlines: bool = True,
    tower: EncoderSpec = CLIP,
    seed: int = 0,
) -> VisualTokens:
    """A thumbnail and tiles as LLaVA-NeXT lays them out.

    The thumbnail's tokens come first, then the rows of the stitched tiles, each with a newline token at its end. The
    image fills the canvas of tiles but for `cut` rows and columns of padding at either side, whose tokens are missing.

    Args:
        side: Rows and columns of the thumbnail and of every tile.
        layout: Rows and columns of tiles.
        cut: Rows above and below, and columns left and right, that are padding.
        newlines: Whether there are newline tokens.
        tower: The encoder.
        seed: Of the features.
    """
    rows, columns = layout[0] * side, layout[1] * side
    height, width = rows - 2 * cut[0], columns - 2 * cut[1]
    canvas = torch.full((rows, columns), -1)
    start, step = side * side, width + int(newlines)
    indices = start + torch.arange(height)[:, None] * step + torch.arange(width)
    canvas[cut[0] : rows - cut[0], cut[1] : columns - cut[1]] = indices
    size = start + height * step
    separators = torch.zeros(size, dtype=torch.bool)
    if newlines:
        separators[start + width :: step] = True
    crops = [Crop(torch.arange(side * side), Grid(side, side), kind="thumbnail")]
    for i in range(layout[0]):
        for j in range(layout[1]):
            index = canvas[i * side : (i + 1) * side, j * side : (j + 1) * side].flatten()
            box = (
                (j * side - cut[1]) / width,
                (i * side - cut[0]) / height,
                ((j + 1) * side - cut[1]) / width,
                ((i + 1) * side - cut[0]) / height,
            )
            crops.append(Crop(index, Grid(side, side), box, "tile"))
    features = torch.randn(size, WIDTH, generator=torch.Generator().manual_seed(seed))
    return VisualTokens(features, tuple(crops), separators=separators if newlines else None, tower=tower)


def frames(
    count: int = 3,
    rows: int = 3,
    columns: int = 4,
    tower: EncoderSpec = CLIP,
    seed: int = 0,
    timestamps: Tensor | None = None,
) -> VisualTokens:
    """A clip."""
    size = rows * columns
    crops = tuple(Crop(torch.arange(i * size, (i + 1) * size), Grid(rows, columns), kind="frame") for i in range(count))
    features = torch.randn(count * size, WIDTH, generator=torch.Generator().manual_seed(seed))
    return VisualTokens(features, crops, tower=tower, timestamps=timestamps)


def same(first: object, second: object) -> bool:
    """Whether two values of a selection's field are the same, bit for bit."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    return first is None and second is None


def tokens_of(crops: Sequence[Crop]) -> list[int]:
    """Indices of all tokens of crops, ascending."""
    return sorted(int(i) for crop in crops for i in crop.present)
