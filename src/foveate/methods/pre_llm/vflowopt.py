"""VFlowOpt, first stage: tokens that attention hubs attend to; the rest is merged cell by cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.core.pre_llm import PreLLMMethod
from foveate.core.tokens import EncoderSpec, Grid, Need, Selection, VisualTokens, merge_tokens, topk_indices
from foveate.methods.shared.clustering import representatives


@dataclass(frozen=True)
class VFlowOpt(PreLLMMethod):
    """Keeps the patches that the encoder's attention hubs attend to and merges the others, one token a cell.

    With $r_j$ the attention that patch j receives, mean over heads and patches, hubs are the patches with $r$ above
    `threshold` times its mean. The score of a patch is the attention it receives from the hubs, mean over heads and
    hubs, plus `entropy` times the softmax over the grey-level entropy of all patches. Of the tokens with the lowest
    scores those in one cell of `cell` x `cell` (tiles laid out as in the image, the thumbnail and every frame for
    themselves) become their mean weighted by score, in place of the best of them. Newline tokens stay.

    "VFlowOpt: A Token Pruning Framework for LMMs with Visual Information Flow-Guided Optimization" (Yang et al., ICCV
    2025, arXiv 2508.05211). The second stage is `vflowopt-decoder`. The authors' settings for LLaVA-OneVision-7B, found
    by a search, for 10, 25 and 50 % on average: `vflowopt:11.66% + vflowopt-decoder:60.11%@18`,
    `vflowopt(threshold=34.76, cell=15.581):26.51% + vflowopt-decoder(threshold=34.76):98.33%@9 +
    vflowopt-decoder(threshold=34.76):87.73%@18` and `vflowopt(threshold=28.683, cell=11.757):72.33% +
    vflowopt-decoder(threshold=28.683):74.87%@9 + vflowopt-decoder(threshold=28.683):48.7%@18`.

    The authors' code merges n / cell^2 tokens more than the budget asks for, so that about the budget stays; here the
    budget is met exactly. It scores the entropy of pixels that were normalised and wrap around; here it is that of the
    pixels themselves. All its released settings have no entropy, and no probe of a live model gives pixels yet. Our
    choices: where the budget is smaller than the number of cells, those with the greatest sum of scores stay; where no
    patch is a hub, the one that receives most is; a budget that only newlines would fill drops newlines first.

    Args:
        threshold: Of hubs, times the mean; from 0 on.
        cell: Side of a cell in tokens, 1 or more; need not be a whole number.
        entropy: Factor of the entropy, -1 to 1; for images of a single raster.
        layer: Encoder block to read, 0-based or from the end; None: the one whose output is used.
    """

    threshold: float = 39.265
    cell: float = 17.387
    entropy: float = 0.0
    layer: int | None = None

    name: ClassVar[str] = "vflowopt"
    mechanism: ClassVar = ("attention", "transformation")
    title: ClassVar[str] = "VFlowOpt: Token Pruning for LMMs with Visual Information Flow-Guided Optimization"
    paper: ClassVar[str] = "arXiv 2508.05211"
    handles_tiles: ClassVar[bool] = True
    sees_separators: ClassVar[bool] = True
    positions: ClassVar = "original"

    def __post_init__(self) -> None:
        if self.threshold < 0:
            raise FoveateError(f"vflowopt: threshold is a number from 0 on, not {self.threshold}.")
        if self.cell < 1:
            raise FoveateError(f"vflowopt: cell is the side of a cell, at least one token, not {self.cell}.")
        if not -1 <= self.entropy <= 1:
            raise FoveateError(f"vflowopt: entropy is a factor from -1 to 1, not {self.entropy}.")

    def needs(self, tower: EncoderSpec) -> tuple[Need, ...]:
        """Attention from the hubs, and pixels for the entropy."""
        hubs = hub_need(tower, self.threshold, self.layer)
        return (hubs, Need("pixels")) if self.entropy else (hubs,)

    def select(self, tokens: VisualTokens, count: int) -> Selection:
        """See `PreLLMMethod.select`."""
        scores, cells = self.scores(tokens), cells_of(tokens, self.cell)
        fixed, free = (cells < 0).nonzero().flatten(), (cells >= 0).nonzero().flatten()
        free_count = count - len(fixed) if count > len(fixed) else min(count, len(free))
        fixed = fixed[: count - free_count]
        best, rest, rows = recycled(scores[free], cells[free], free_count)
        indices = torch.cat([fixed, free[best], free[rows.unique()]]).sort().values
        assignment = torch.full((len(tokens),), -1, dtype=torch.int64, device=tokens.device)
        assignment[indices] = torch.arange(count, device=tokens.device)
        assignment[free[rest]] = torch.searchsorted(indices, free[rows])
        return merge_tokens(tokens.features, indices, assignment, scores.clamp(min=1e-12))

    def scores(self, tokens: VisualTokens) -> Tensor:
        """Scores (N,) of all tokens."""
        needs = self.needs(tokens.tower)
        scores = tokens.get(needs[0]).float()
        if self.entropy:
            scores = scores + self.entropy * grey_entropy(tokens.get(needs[1]), tokens.grid).softmax(dim=0)
        return scores


def hub_need(tower: EncoderSpec, threshold: float, layer: int | None) -> Need:
    """What both stages need of the encoder."""
    return Need("hub_attention", tower.last_used if layer is None else tower.layer(layer), threshold=threshold)


def cells_of(tokens: VisualTokens, side: float) -> Tensor:
    """(N,) the cell of every token, -1 for those that are in no raster. Tiles share one raster, as in the image."""
    cells = torch.full((len(tokens),), -1, dtype=torch.int64, device=tokens.device)
    for number, crop in enumerate(tokens.crops):
        place = (crop.index >= 0).nonzero().flatten()
        row, column = place // crop.grid.columns, place % crop.grid.columns
        raster = number
        if crop.kind == "tile":  # where it begins in the raster of all tiles, padding cut away
            left, upper, right, lower = crop.box
            row = row + round(upper / (lower - upper) * crop.grid.rows)
            column = column + round(left / (right - left) * crop.grid.columns)
            raster = len(tokens.crops)
        row, column = ((along / side).floor().long() for along in (row, column))
        cells[crop.index[place]] = (raster * _WIDE + row) * _WIDE + column
    return cells


#: More cells than any raster has in a row.
_WIDE = 2**15


def recycled(scores: Tensor, cells: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which tokens stay, and which of the others become one token with those of their cell.

    As few as possible of the lowest scores are merged such that `count` remain, merged ones included.

    Args:
        scores: (n,).
        cells: (n,), any numbers.
        count: From 1 to n.

    Returns:
        Indices (b,) of tokens that stay as they are; (m,) of those that are merged; (m,) the token that each is merged
            into.
    """
    size = len(scores)
    ascending = scores.argsort(descending=True, stable=True).flip(0)
    rank = torch.arange(size, device=scores.device)
    number, labels = _numbered(cells)
    first = torch.full((number,), size, dtype=torch.int64, device=scores.device).scatter_reduce(
        0, labels[ascending], rank, "amin"
    )
    opens = torch.zeros(size, dtype=torch.int64, device=scores.device).index_fill(0, first, 1)
    remaining = torch.cat([rank.new_tensor([size]), size - 1 - rank + opens.cumsum(dim=0)])
    enough = (remaining <= count).nonzero().flatten()
    merged = ascending[: int(enough[0]) if len(enough) else size]
    kept = ascending[len(merged) :]
    number, labels = _numbered(cells[merged])
    if len(kept) + number > count:  # more cells than the budget takes
        sums = scores.new_zeros(number).index_add(0, labels, scores[merged])
        chosen = torch.zeros(number, dtype=torch.bool, device=scores.device).index_fill(
            0, topk_indices(sums, count), True
        )
        merged = merged[chosen[labels]]
    merged = merged.sort().values
    number, labels = _numbered(cells[merged])
    return kept, merged, merged[representatives(labels, scores[merged], number)[labels]]


def _numbered(cells: Tensor) -> tuple[int, Tensor]:
    """How many cells there are, and which of them each token is in, from 0 on."""
    numbers, labels = cells.unique(return_inverse=True)
    return len(numbers), labels


def grey_entropy(pixels: Tensor, grid: Grid) -> Tensor:
    """(rows * columns,) entropy in bits of the 256 grey levels in every cell of an image (3, height, width), 0 to 1."""
    _, height, width = pixels.shape
    if height % grid.rows or width % grid.columns:
        raise FoveateError(f"an image of {width} x {height} pixels cannot be cut into {grid.columns} x {grid.rows}.")
    weights = pixels.new_tensor([0.299, 0.587, 0.114])
    grey = ((pixels * weights[:, None, None]).sum(dim=0) * 255).round().long().clamp(0, 255)
    patches = grey.view(grid.rows, height // grid.rows, grid.columns, width // grid.columns).transpose(1, 2)
    patches = patches.reshape(grid.size, -1)
    counts = torch.zeros(grid.size, 256, dtype=torch.float32, device=pixels.device)
    counts.scatter_add_(1, patches, torch.ones_like(patches, dtype=torch.float32))
    share = counts / patches.shape[1]
    return -torch.where(share > 0, share * share.clamp(min=1e-12).log2(), 0).sum(dim=1)
