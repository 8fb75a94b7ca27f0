"""GlobalCom2: the thumbnail sets the budget of every tile and helps to rank its tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.core.pre_llm import PreLLMMethod, divide
from foveate.core.tokens import (
    EncoderSpec,
    Need,
    Selection,
    VisualTokens,
    in_order,
    ranked,
    select_tokens,
    topk_indices,
)
from foveate.methods.shared.tiles import apportion, layout, on_grid, resampled, shown_by


@dataclass(frozen=True)
class GlobalCom2(PreLLMMethod):
    """Keeps more of the tiles that the thumbnail rates high, and in a tile the tokens that both rate high.

    With s the [CLS] scores and R the share of all tokens that stays: the thumbnail keeps the share R of its tokens with
    the greatest s. z_i is the sum of the thumbnail's s within tile i, sigma = softmax(z / temperature), and tile i
    keeps the share r_i = min(1, R (1 + sigma_i - 1/n)). Its tokens are ranked by c / |c| + g / |g|, c their own s and g
    the thumbnail's s interpolated at their positions, both over the tokens of the tile (GlobalCom2, arXiv 2501.05179,
    AAAI 2026). Plain images, which the authors do not compress, keep the greatest s.

    s is the head mean of the [CLS] row of the last block before the softmax, as in the authors' code. Their paper
    writes the softmax (`softmax`), whose values sum to at most one over the thumbnail: a temperature of 10 makes all
    r_i nearly equal then. An encoder without [CLS], as that of LLaVA-OneVision in the paper, has no such row, and the
    released code has no such model. There s is the logarithm of the attention received over its mean, a logit up to a
    constant, and with `softmax` the attention received itself (our reading).

    A tile has the patches of the thumbnail whose middle it shows, shares are scaled so that the budget is met exactly,
    newlines are dropped first and tokens stay in raster order. `reference` does as the authors' code: the thumbnail is
    divided evenly, padding or not; shares are rounded down; one newline a row comes on top of the budget; the
    thumbnail's tokens are read in the order of their scores.

    Args:
        temperature: tau.
        layer: Encoder block of the scores, 0-based or from the end.
        softmax: Scores after the softmax.
        reference: Division, rounding, newlines and order as in the authors' code; the budget is met only roughly.
    """

    temperature: float = 10.0
    layer: int = -1
    softmax: bool = False
    reference: bool = False

    name: ClassVar[str] = "globalcom2"
    mechanism: ClassVar = ("attention",)
    modality: ClassVar = ("image",)
    title: ClassVar[str] = (
        "Global Compression Commander: Plug-and-Play Inference Acceleration for High-Resolution LVLMs"
    )
    paper: ClassVar[str] = "arXiv 2501.05179"
    handles_tiles: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.reference:
            object.__setattr__(self, "static_count", False)
        if not self.temperature > 0:
            raise FoveateError(f"globalcom2: the temperature is greater than 0, not {self.temperature}.")

    def needs(self, tower: EncoderSpec) -> tuple[Need, ...]:
        """The [CLS] row, or the attention received where there is none."""
        if not tower.has_cls:
            return (Need("received", tower.layer(self.layer)),)
        return (Need("cls_attention" if self.softmax else "cls_logits", tower.layer(self.layer)),)

    def select(self, tokens: VisualTokens, count: int) -> Selection:
        """See `PreLLMMethod.select`."""
        scores = self._scores(tokens)
        if len(tokens.crops) == 1:
            present = tokens.crops[0].present
            return Selection(present[topk_indices(scores[present], count)])
        thumbnail, tiles = tokens.thumbnail, [crop for crop in tokens.crops if crop.kind == "tile"]
        if thumbnail is None or not tiles or not len(thumbnail.present):
            return self._by_crop(tokens, count)
        sizes = [len(tile.present) for tile in tiles]
        total = len(thumbnail.present) + sum(sizes)
        saliency = on_grid(scores, thumbnail)
        if self.reference:
            rows, columns = layout(tiles)
            row = (torch.arange(saliency.shape[0]) // max(saliency.shape[0] // rows, 1)).clamp(max=rows - 1)
            column = (torch.arange(saliency.shape[1]) // max(saliency.shape[1] // columns, 1)).clamp(max=columns - 1)
            owner = (row[:, None] * columns + column).flatten().to(saliency.device)
            sums = saliency.new_zeros(len(tiles)).index_add_(0, owner, saliency.flatten())
        else:
            sums = shown_by(tiles, thumbnail).to(saliency.dtype) @ saliency.flatten()
        factors = importance(sums.tolist(), self.temperature)
        if self.reference:
            ratio = count / total
            thumbnail_count = len(thumbnail.present) * count // total
            shares = [int(size * min(1.0, ratio * factor)) for size, factor in zip(sizes, factors, strict=True)]
        else:
            thumbnail_count, rest = divide(count, [len(thumbnail.present), sum(sizes)])
            shares = apportion(rest, [size * factor for size, factor in zip(sizes, factors, strict=True)], sizes)
        best = ranked(scores[thumbnail.present], thumbnail_count)
        first = thumbnail.present[best]
        picks = [first]
        for tile, share in zip(tiles, shares, strict=True):
            guide = resampled(saliency, thumbnail, tile)[tile.index >= 0]
            combined = F.normalize(scores[tile.present], dim=0) + F.normalize(guide, dim=0)
            picks.append(tile.present[topk_indices(combined, share)])
        if not self.reference:
            return select_tokens(torch.cat(picks))
        if tokens.separators is not None:
            picks.append(tokens.separators.nonzero().flatten())
        chosen = select_tokens(torch.cat(picks))
        rest = chosen.indices[~torch.isin(chosen.indices, first)]
        return in_order(chosen, tokens.features, torch.searchsorted(chosen.indices, torch.cat([first, rest])))

    def _scores(self, tokens: VisualTokens) -> Tensor:
        """(N,) s of all tokens."""
        (need,) = self.needs(tokens.tower)
        scores = tokens.get(need).float()
        if need.kind != "received" or self.softmax:
            return scores
        ordinary = scores if tokens.separators is None else scores[~tokens.separators]
        least = torch.finfo(torch.float32).tiny
        return (scores.clamp(min=least) / ordinary.mean().clamp(min=least)).log()


def importance(sums: list[float], temperature: float) -> list[float]:
    """1 + softmax(sums / temperature) - 1 / n, by which the share of every tile is multiplied."""
    highest = max(sums)
    powers = [math.exp((value - highest) / temperature) for value in sums]
    return [1 + power / sum(powers) - 1 / len(sums) for power in powers]
