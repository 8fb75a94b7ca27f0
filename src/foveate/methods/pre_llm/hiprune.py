"""HiPrune: attention hubs of a middle block, their neighbours, and hubs of the last used block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.core.counting import share_of
from foveate.core.errors import FoveateError
from foveate.core.pre_llm import PreLLMMethod
from foveate.core.tokens import EncoderSpec, Need, Selection, VisualTokens, topk_indices


@dataclass(frozen=True)
class HiPrune(PreLLMMethod):
    """Keeps the tokens most attended to in a middle encoder block, their neighbours, and those of a deep block.

    Anchors: the round(alpha * count / 5) tokens that receive the most attention at a middle block (mean over heads and
    all queries). Buffers: their neighbours above, below, left and right. Registers: of the rest, those that receive the
    most at the block whose output is used, up to `count` tokens (HiPrune, arXiv 2508.00553). Works without [CLS].

    Neighbours are those of the grid. The authors' code adds -1, +1, -width and +width to the index (`reference`), which
    wraps from the end of a row to the next and adds the first or the last token for an anchor at the border. It
    excludes chosen tokens by subtracting 1 from their score, which fails where scores are sums and not means (its
    Qwen2.5-VL version, where the count then falls short); here the budget is met exactly. Anchors are at most count //
    5, which only matters for an alpha near 1.

    Args:
        alpha: Share of the budget for anchors and buffers.
        layer: Middle block, 0-based or from the end. None: as in the paper, the 9th of 24 (3/8 of the depth) of an
            encoder with [CLS] and the 16th of 32 (half) of one without.
        reference: Neighbours as in the authors' code.
    """

    alpha: float = 0.1
    layer: int | None = None
    reference: bool = False

    name: ClassVar[str] = "hiprune"
    mechanism: ClassVar = ("attention",)
    title: ClassVar[str] = (
        "HiPrune: Training-Free Visual Token Pruning via Hierarchical Attention in Vision-Language Models"
    )
    paper: ClassVar[str] = "arXiv 2508.00553"

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise FoveateError(f"hiprune: alpha is a share of the budget, 0 to 1, not {self.alpha}.")

    def needs(self, tower: EncoderSpec) -> tuple[Need, ...]:
        """Attention received at the middle and at the used block."""
        if self.layer is not None:
            middle = tower.layer(self.layer)
        else:
            middle = max(0, (tower.num_layers * 3 // 8 if tower.has_cls else tower.num_layers // 2) - 1)
        return (Need("received", middle), Need("received", tower.last_used))

    def select(self, tokens: VisualTokens, count: int) -> Selection:
        """See `PreLLMMethod.select`."""
        middle, deep = (tokens.get(need).float() for need in self.needs(tokens.tower))
        anchors = topk_indices(middle, min(share_of(self.alpha / 5, count), count // 5))
        chosen = self._listed(tokens, anchors) if self.reference else _surroundings(tokens, anchors)
        return Selection(topk_indices(deep.masked_fill(chosen, torch.inf), count))

    def _listed(self, tokens: VisualTokens, anchors: Tensor) -> Tensor:
        width = tokens.grid.columns
        steps = torch.tensor([0, -1, 1, -width, width], device=tokens.device)
        chosen = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
        chosen[(anchors[:, None] + steps).clamp(0, len(tokens) - 1).flatten()] = True
        return chosen


def _surroundings(tokens: VisualTokens, anchors: Tensor) -> Tensor:
    """(N,) bool: the anchors and their neighbours within the grid."""
    rows, columns = tokens.grid
    index = tokens.crops[0].index  # -1 where padding was
    chosen = torch.zeros(len(tokens) + 1, dtype=torch.bool, device=tokens.device)  # the last one answers for -1
    chosen[anchors] = True
    is_anchor = chosen[index].view(rows, columns)
    grid = is_anchor.clone()
    grid[1:] |= is_anchor[:-1]
    grid[:-1] |= is_anchor[1:]
    grid[:, 1:] |= is_anchor[:, :-1]
    grid[:, :-1] |= is_anchor[:, 1:]
    chosen[index] = grid.flatten()
    return chosen[:-1]
