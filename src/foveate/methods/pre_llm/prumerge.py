"""PruMerge and PruMerge+: an adaptive number of tokens, each merged with its nearest neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.counting import share_of
from foveate.core.errors import FoveateError
from foveate.core.method import BudgetRule
from foveate.core.pre_llm import PreLLMMethod
from foveate.core.tokens import EncoderSpec, Need, Selection, VisualTokens, other_indices, topk_indices, wide
from foveate.methods.shared.clustering import nearest, spread, weighted


@dataclass(frozen=True)
class PruMerge(PreLLMMethod):
    """Keeps the patches whose [CLS] attention is an outlier and merges the patches of most similar keys into each.

    With a = mean_h A[h, CLS, 1:] and its quartiles Q1 and Q3, the patches with a > Q3 + 1.5 (Q3 - Q1) stay, at least
    one. Each is merged with its k nearest others by the cosine of their keys, kept ones included: y_i = (a_i x_i +
    sum_j a_j x_j) / (a_i + sum_j a_j) (LLaVA-PruMerge, arXiv 2403.15388). With a budget the `count` greatest stay. An
    encoder without [CLS] ranks by attention received.

    Neighbourhoods overlap, so a token may go into several rows. `Selection.assignment` names the most similar of them
    for a dropped token, and none for a token in no neighbourhood.

    The authors' code does not normalise, y_i = x_i + sum_j a_j x_j, and adds one token, sum a_j x_j over all dropped
    ones. `reference` does so, with that token in place of the last dropped one (it counts in a budget), and loses an
    outlier where int(N * (outliers / N)) does. The code reads block 23 of CLIP, whose output LLaVA does not use, as one
    head of the full width, and merges before the connector; here heads are averaged, at the block whose output is used,
    and the tokens that the language model reads are merged.

    Args:
        neighbours: k.
        layer: Encoder block to read, 0-based or from the end; None: the one whose output is used.
        reference: Sums and the extra token of the authors' code.
    """

    neighbours: int = 32
    layer: int | None = None
    reference: bool = False

    name: ClassVar[str] = "prumerge"
    mechanism: ClassVar = ("attention", "similarity")
    title: ClassVar[str] = "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models"
    paper: ClassVar[str] = "arXiv 2403.15388"
    static_count: ClassVar[bool] = False
    budget: ClassVar[BudgetRule] = "optional"

    def __post_init__(self) -> None:
        if self.neighbours < 0:
            raise FoveateError(f"{self.name}: neighbours must be at least 0, not {self.neighbours}.")

    def needs(self, tower: EncoderSpec) -> tuple[Need, ...]:
        """The [CLS] row and the keys."""
        layer = tower.layer(self.layer)
        return (Need("cls_attention", layer, substitute=True), Need("keys", layer))

    def select(self, tokens: VisualTokens, count: int) -> Selection:
        """See `PreLLMMethod.select`."""
        attention, keys = (tokens.get(need).float() for need in self.needs(tokens.tower))
        if self.reference:
            centres = self._centres(attention, count - 1) if count else self._unbudgeted(attention)
            return self._summed(tokens.features, attention, keys, centres)
        return self._averaged(tokens.features, attention, keys, self._centres(attention, count or None))

    def _unbudgeted(self, attention: Tensor) -> Tensor:
        """The centres of the method's own rule as the authors' code finds them: possibly none."""
        return topk_indices(attention, _lossy(_outliers(attention), len(attention)))

    def _centres(self, attention: Tensor, count: int | None) -> Tensor:
        return topk_indices(attention, max(1, _outliers(attention)) if count is None else count)

    def _averaged(self, features: Tensor, attention: Tensor, keys: Tensor, centres: Tensor) -> Selection:
        near = nearest(keys, centres, self.neighbours)
        groups = torch.cat([centres[:, None], near], dim=1)
        weights = attention.clamp(min=torch.finfo(torch.float32).eps ** 2)  # nothing attended to: a plain mean
        weights = weights.to(wide(features[:0]).dtype)
        out = weighted(features, weights, groups) / weights[groups].sum(dim=1, keepdim=True)

        x = F.normalize(keys, dim=-1)
        inside = x.new_full((len(centres), len(features)), -torch.inf)
        inside.scatter_(1, near, (x[centres] @ x.T).gather(1, near))
        closeness, assignment = inside.max(dim=0)
        assignment[closeness == -torch.inf] = -1
        assignment[centres] = torch.arange(len(centres), device=centres.device)
        used = assignment >= 0
        share = torch.where(used, weights, 0.0)
        total = share.new_zeros(len(centres)).index_add_(0, assignment[used], share[used])
        share = share / total[assignment.clamp(min=0)]
        return Selection(centres, out.to(features.dtype), assignment, share)

    def _summed(self, features: Tensor, attention: Tensor, keys: Tensor, centres: Tensor) -> Selection:
        out = wide(features[centres])
        if len(centres):
            out = out + weighted(features, attention, nearest(keys, centres, self.neighbours))
        if len(centres) == len(features):  # nothing is dropped
            return Selection(centres, out.to(features.dtype))
        dropped = torch.ones(len(features), dtype=torch.bool, device=features.device).index_fill_(0, centres, False)
        weights = torch.where(dropped, attention, 0.0).to(out.dtype)
        extra = weights @ wide(features)
        numbers = torch.arange(len(features), device=features.device)
        last = torch.where(dropped, numbers, -1).max()
        indices, order = torch.cat([centres, last[None]]).sort()
        assignment = torch.searchsorted(indices, torch.where(dropped, last, numbers))
        share = torch.where(dropped, weights / weights.sum().clamp(min=torch.finfo(torch.float32).tiny), 1.0)
        return Selection(indices, torch.cat([out, extra[None]])[order].to(features.dtype), assignment, share)


@dataclass(frozen=True)
class PruMergePlus(PruMerge):
    """PruMerge with additional centres spread evenly over the image.

    With a share r of outliers, every floor(floor(1 / r) / 3)-th token in raster order is a centre too: about three for
    each outlier (LLaVA-PruMerge, arXiv 2403.15388, PruMerge+). With a budget, a share of it goes to the greatest
    attention and the rest is spread evenly over the remaining tokens. All else is as in PruMerge.

    Args:
        share: Part of a given budget that goes by attention. The rule without a budget comes to about a quarter.
    """

    share: float = 0.25

    name: ClassVar[str] = "prumerge+"
    with_budget: ClassVar = ("share",)
    mechanism: ClassVar = ("attention", "similarity")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.share <= 1:
            raise FoveateError(f"prumerge+: share is a part of the budget, 0 to 1, not {self.share}.")

    def _unbudgeted(self, attention: Tensor) -> Tensor:
        # The authors' code ends before the last of its 576 tokens.
        outliers, size = _outliers(attention), len(attention)
        return self._stepped(attention, _lossy(outliers, size), outliers, size - 1)

    def _centres(self, attention: Tensor, count: int | None) -> Tensor:
        if count is None:
            outliers = max(1, _outliers(attention))
            return self._stepped(attention, outliers, outliers, len(attention))
        first = topk_indices(attention, share_of(self.share, count))
        rest = other_indices(first, len(attention))
        even = rest[spread(len(rest), count - len(first), attention.device)]
        return torch.cat([first, even]).sort().values

    def _stepped(self, attention: Tensor, first: int, outliers: int, end: int) -> Tensor:
        best = topk_indices(attention, first)
        if not outliers:
            return best
        step = max(1, len(attention) // outliers // 3)
        return torch.cat([best, torch.arange(0, end, step, device=attention.device)]).unique()


def _lossy(outliers: int, size: int) -> int:
    """The count as the authors' code gets it back from a ratio; rounding may lose one."""
    return int(size * (outliers / size))


def _outliers(attention: Tensor) -> int:
    """How many values are above the third quartile by more than 1.5 times the distance of the quartiles."""
    low, high = attention.quantile(attention.new_tensor([0.25, 0.75]))
    return int((attention > high + 1.5 * (high - low)).sum())
