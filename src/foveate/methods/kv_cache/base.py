"""Cache compression for next-scale models: HACK, ScaleKV, and two controls.

A method holds hyper-parameters; `policy` turns it, with a budget and a profile of the model, into the `Policy` that a
`ScaleCache` calls after every map. A budget is a mean number of tokens for every head, out of those that a full cache
holds when the last map is generated.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.core.counting import share_of
from foveate.core.errors import FoveateError
from foveate.methods.kv_cache import hack, scalekv
from foveate.methods.kv_cache.cache_method import CacheMethod, Profile, check_positive, check_share, history
from foveate.methods.kv_cache.ragged import Group
from foveate.methods.kv_cache.scale_cache import Policy


class _Uniform(Policy):
    """The same budget for every head, without scores."""

    def __init__(self, average: int, heads: int) -> None:
        self.average = [average] * heads

    def budgets(self, place: int, layer: int) -> Sequence[int]:
        """See the base class."""
        return self.average

    def observed(self, side: int) -> list[int]:
        """None."""
        return []


@dataclass(frozen=True)
class Hack(CacheMethod):
    """HACK: contextual heads keep few tokens, structural heads more (Qin et al., AAAI 2026, arXiv 2504.09261).

    Heads are classified once, by the variance of their attention over queries at the last map. After each map the
    tokens are scored by the attention of some of its queries; contextual heads keep the best, structural heads the
    first tokens, the last ones and the best between. Before the last map, the dropped tokens of contextual heads are
    merged into the kept ones. The paper's defaults could not be verified; these are ours.

    Args:
        alpha: Share of heads that are contextual.
        ratio: Budget of a contextual head over that of a structural one.
        observed: Queries of a map that score, evenly spread.
        initial: Share of a structural head's budget for the first tokens.
        recent: Share of it for the last ones.
        merge: Whether contextual heads merge before the last map.
    """

    name: ClassVar[str] = "hack"
    title: ClassVar[str] = "Head-Aware KV Cache Compression for Efficient Visual Autoregressive Modeling"
    paper: ClassVar[str] = "arXiv 2504.09261"
    mechanism: ClassVar = ("attention",)

    alpha: float = 0.5
    ratio: float = 0.5
    observed: int = 16
    initial: float = 0.2
    recent: float = 0.4
    merge: bool = True

    def __post_init__(self) -> None:
        check_share(self, "alpha", "ratio", "initial", "recent")
        check_positive(self, "observed")
        if self.ratio == 0 or self.initial + self.recent > 1:
            raise FoveateError("hack: ratio must be above 0, and initial + recent at most 1.")

    def policy(self, average: int, profile: Profile, seed: int) -> Policy:
        """See the base class."""
        return _HackPolicy(self, average, profile)


class _HackPolicy(Policy):
    def __init__(self, method: Hack, average: int, profile: Profile) -> None:
        self.method = method
        self.contextual = hack.contextual_heads(profile.variance, method.alpha)
        self.table = hack.head_budgets(
            profile.variance, method.alpha, average, method.ratio, history(profile.scales)
        ).tolist()
        self.last = len(profile.scales) - 2

    def budgets(self, place: int, layer: int) -> Sequence[int]:
        return self.table[layer]

    def observed(self, side: int) -> list[int]:
        return hack.observed_queries(side * side, self.method.observed)

    def keep(self, scores: Tensor, group: Group, budget: int, layer: int, place: int) -> Group:
        received = scores.sum(dim=2)
        structural = ~self.contextual[layer, list(group.heads)].to(received.device)
        initial, recent = (share_of(share, budget, "down") for share in (self.method.initial, self.method.recent))
        kept = torch.where(
            structural[:, None],
            hack.keep_structural(received, budget, initial, recent),
            hack.keep_contextual(received, budget),
        )
        short = group.keep(kept)
        if not self.method.merge or place != self.last or bool(structural.all()):
            return short
        keys, values = hack.merge_evicted(group.keys, group.values, kept)
        plain = structural[:, None, None]
        return dataclasses.replace(
            short, keys=torch.where(plain, short.keys, keys), values=torch.where(plain, short.values, values)
        )


@dataclass(frozen=True)
class ScaleKV(CacheMethod):
    """ScaleKV: drafter layers keep many tokens, refiner layers fewer (Li et al., NeurIPS 2025, arXiv 2505.19602).

    Which layer drafts at which map follows from the attention selectivity index. After each map its observation window
    scores the tokens of every head; the window and the best others stay, up to the layer's budget for the next map.

    Args:
        drafters: Share of (layer, map) pairs that draft: 2 of 32, as in the authors' table for Infinity-2B; in that for
            8B it is 3 of 40.
        start: A refiner's budget at the first map over the mean; 0.97 in the authors' tables.
        decay: Decrease of that budget from map to map, over the mean. The paper's value could not be verified.
        window: Tokens that score and always stay, a square number: the centres of the cells of a grid.
        pooling: Smoothing of scores, "average" as in the paper or "maximum" as in the authors' code.
        kernel: Its odd width.
    """

    name: ClassVar[str] = "scalekv"
    title: ClassVar[str] = "Memory-Efficient Visual Autoregressive Modeling with Scale-Aware KV Cache Compression"
    paper: ClassVar[str] = "arXiv 2505.19602"
    mechanism: ClassVar = ("attention",)

    drafters: float = 0.0625
    start: float = 0.97
    decay: float = 0.05
    window: int = 16
    pooling: str = "average"
    kernel: int = 5

    def __post_init__(self) -> None:
        check_share(self, "drafters", "start", "decay")
        check_positive(self, "window", "kernel")
        if round(self.window**0.5) ** 2 != self.window:
            raise FoveateError(f"scalekv: window must be a square number such as 16, 9 or 4, not {self.window}.")
        if self.kernel % 2 == 0:
            raise FoveateError(f"scalekv: kernel must be odd, not {self.kernel}.")
        if self.pooling not in ("average", "maximum"):
            raise FoveateError(f'scalekv: pooling is "average" or "maximum", not {self.pooling!r}.')

    def policy(self, average: int, profile: Profile, seed: int) -> Policy:
        """See the base class."""
        return _ScaleKVPolicy(self, average, profile)


class _ScaleKVPolicy(Policy):
    def __init__(self, method: ScaleKV, average: int, profile: Profile) -> None:
        self.method, self.heads = method, profile.variance.shape[1]
        self.cells, self.scales = round(method.window**0.5), profile.scales
        before = [sum(side * side for side in profile.scales[:place]) for place in range(len(profile.scales))]
        # Nothing has to go before the first map at which a full cache would exceed the mean budget.
        first = sum(tokens <= average for tokens in before)
        index = profile.selectivity[:, first:]
        chosen = scalekv.drafters(index, share_of(method.drafters, index.numel()))
        budgets = scalekv.layer_budgets(chosen, average, method.start, method.decay, before[first:])
        #: Tokens that a layer may hold when a map is read.
        self.table = torch.cat([torch.full((len(budgets), first), average), budgets], dim=1).tolist()
        least = int(budgets.min()) if budgets.numel() else average
        if budgets.numel() and least < method.window:
            raise FoveateError(
                f"scalekv: a layer may hold {least} tokens, fewer than its window of {method.window}; choose a larger "
                f"budget or a smaller window, such as scalekv(window=4)."
            )

    def budgets(self, place: int, layer: int) -> Sequence[int]:
        return [self.table[layer][place + 1]] * self.heads

    def observed(self, side: int) -> list[int]:
        return scalekv.window(side, self.cells)

    def keep(self, scores: Tensor, group: Group, budget: int, layer: int, place: int) -> Group:
        smooth = scalekv.scores(scores, self.method.pooling, self.method.kernel)
        side = self.scales[place]
        begin = group.length - side * side
        return group.keep(scalekv.keep(smooth, budget, [begin + token for token in self.observed(side)]))


@dataclass(frozen=True)
class RandomCache(CacheMethod):
    """Control: every head keeps random tokens."""

    name: ClassVar[str] = "random"
    title: ClassVar[str] = "Random tokens (control)"
    mechanism: ClassVar = ("control",)

    def policy(self, average: int, profile: Profile, seed: int) -> Policy:
        """See the base class."""
        return _RandomPolicy(average, profile.variance.shape[1], seed)


class _RandomPolicy(_Uniform):
    def __init__(self, average: int, heads: int, seed: int) -> None:
        super().__init__(average, heads)
        self.seed = seed

    def keep(self, scores: Tensor, group: Group, budget: int, layer: int, place: int) -> Group:
        chance = torch.Generator().manual_seed(self.seed * 1_000_003 + 1_000 * place + layer)
        drawn = torch.rand(*group.keys.shape[:3], generator=chance).to(group.keys.device)
        return group.keep(hack.keep_contextual(drawn, budget))


@dataclass(frozen=True)
class RecentCache(CacheMethod):
    """Control: every head keeps the newest tokens."""

    name: ClassVar[str] = "recent"
    title: ClassVar[str] = "Newest tokens (control)"
    mechanism: ClassVar = ("control",)

    def policy(self, average: int, profile: Profile, seed: int) -> Policy:
        """See the base class."""
        return _RecentPolicy(average, profile.variance.shape[1])


class _RecentPolicy(_Uniform):
    def keep(self, scores: Tensor, group: Group, budget: int, layer: int, place: int) -> Group:
        batch, heads, length, _ = group.keys.shape
        newest = torch.arange(length - budget, length, device=group.keys.device)
        return group.keep(newest.expand(batch, heads, budget))


METHODS: dict[str, type[CacheMethod]] = {method.name: method for method in (Hack, ScaleKV, RandomCache, RecentCache)}
"""The methods by name."""
