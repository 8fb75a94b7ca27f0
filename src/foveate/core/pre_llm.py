"""Base classes of methods before the language model."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.core.method import Method, Site
from foveate.core.tokens import Crop, Selection, VisualTokens, check_finite, topk_indices, wide


@dataclass(frozen=True)
class PreLLMMethod(Method):
    """A method that selects or merges the visual tokens of one image before the language model reads them.

    The base class handles what is common to all: budgets, crops, separators, full budgets, and ascending, unique
    indices. A method only selects.
    """

    site: ClassVar[Site] = Site.PRE_LLM
    #: Whether the method itself divides a tiled image; otherwise every crop gets its share and is an image of its own.
    handles_tiles: ClassVar[bool] = False
    #: Whether separators (newline tokens) are ordinary tokens to this method. Otherwise they are dropped first.
    sees_separators: ClassVar[bool] = False

    @abstractmethod
    def select(self, tokens: VisualTokens, count: int) -> Selection:
        """Choose `count` of the tokens of one crop (of a whole image if `handles_tiles`), 0 < count < len(tokens).

        Methods whose budget is not "count" may get `count` = 0: their own rule decides.
        """

    def __call__(self, tokens: VisualTokens, count: int | None) -> Selection:
        """Choose tokens of one image.

        Args:
            tokens: The image.
            count: Tokens that shall stay; None leaves it to the method.

        Raises:
            FoveateError: the method needs a budget and has none, the budget is not between 1 and the tokens there, the
                tokens are not finite, or what the method chose is no selection.
        """
        self.check_budget(count)
        if count is None:
            return self._checked(tokens, 0)
        if count >= len(tokens):
            return Selection(torch.arange(len(tokens), device=tokens.device))
        return self._checked(tokens, count)

    def _checked(self, tokens: VisualTokens, count: int) -> Selection:
        """What the method chooses, if the tokens can be chosen from and the choice is one."""
        measured = ((f"values of {need.kind}", value) for need, value in tokens.measured.items())
        check_finite(self.name, (("features of the visual tokens", tokens.features), *measured))
        selection = self._select(tokens, count)
        selection.check(len(tokens), self.name)
        return selection

    def _select(self, tokens: VisualTokens, count: int) -> Selection:
        plain = tokens.separators is None or not bool(tokens.separators.any())
        if not plain and not self.sees_separators:
            ordinary = (~tokens.separators).nonzero().flatten()
            if count >= len(ordinary):  # the budget takes some separators, the first ones
                first = tokens.separators.nonzero().flatten()[: count - len(ordinary)]
                return Selection(torch.cat([ordinary, first]).sort().values)
        if self.takes_whole(tokens) or (plain and len(tokens.crops) == 1):
            return self.select(tokens, count)
        return self._by_crop(tokens, count)

    def takes_whole(self, tokens: VisualTokens) -> bool:
        """Whether `select` gets all crops of these tokens at once."""
        return self.handles_tiles

    def _by_crop(self, tokens: VisualTokens, count: int) -> Selection:
        crops = [crop for crop in tokens.crops if len(crop.present)]
        shares = divide(count, [len(crop.present) for crop in crops]) if count else [0] * len(crops)
        parts = []
        for crop, share in zip(crops, shares, strict=True):
            part = tokens.part(crop)
            if count and share >= len(part):
                parts.append(Selection(torch.arange(len(part), device=tokens.device)))
            elif count and not share:
                parts.append(Selection(torch.zeros(0, dtype=torch.int64, device=tokens.device)))
            else:
                parts.append(self.select(part, share))
        return join(tokens, crops, parts)


@dataclass(frozen=True)
class PreLLMScorer(PreLLMMethod):
    """A method that scores every token of a crop and keeps those of the highest scores; of equal ones the first."""

    @abstractmethod
    def score(self, tokens: VisualTokens) -> Tensor:
        """(N,) the higher, the more a token matters. Tokens that shall go first have -inf."""

    def select(self, tokens: VisualTokens, count: int) -> Selection:
        """See `PreLLMMethod.select`."""
        return Selection(topk_indices(self.score(tokens), count))


def divide(count: int, sizes: list[int]) -> list[int]:
    """`count` divided in proportion to `sizes`, none getting more than its size; largest remainders round up.

    The shares sum to min(count, sum(sizes)); of equal remainders the first is served first.
    """
    total = sum(sizes)
    count = min(count, total)
    exact = [count * size / total for size in sizes]
    shares = [int(share) for share in exact]
    order = sorted(range(len(sizes)), key=lambda i: (shares[i] - exact[i], i))
    for i in order[: count - sum(shares)]:
        shares[i] += 1
    return shares


def join(tokens: VisualTokens, crops: list[Crop], parts: list[Selection]) -> Selection:
    """Selections of crops as one selection of the image they belong to."""
    indices = torch.cat([crop.present[part.indices] for crop, part in zip(crops, parts, strict=True)])
    order = indices.argsort()
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    changed = any(part.features is not None or part.assignment is not None for part in parts)
    if not changed:
        return Selection(indices[order])
    features, start = [], 0
    assignment = torch.full((len(tokens),), -1, dtype=torch.int64, device=tokens.device)
    weights = torch.zeros(len(tokens), dtype=wide(tokens.features[:0]).dtype, device=tokens.device)
    for crop, part in zip(crops, parts, strict=True):
        part_features = tokens.features[crop.present]
        features.append(part_features[part.indices] if part.features is None else part.features)
        member = part.assignment
        if member is None:
            member = torch.full((len(part_features),), -1, dtype=torch.int64, device=tokens.device)
            member[part.indices] = torch.arange(len(part), device=tokens.device)
        used = member >= 0
        assignment[crop.present[used]] = rank[start + member[used]]
        if part.weights is None:
            size = member[used].bincount(minlength=len(part))
            weights[crop.present[used]] = 1 / size[member[used]].to(weights.dtype)
        else:
            weights[crop.present] = part.weights.to(weights.dtype)
        start += len(part)
    positions = None
    width = max((part.positions.shape[1] for part in parts if part.positions is not None), default=0)
    if width:
        part_positions = [p.indices[:, None].expand(-1, width) if p.positions is None else p.positions for p in parts]
        carried = [crop.present[part_position] for crop, part_position in zip(crops, part_positions, strict=True)]
        positions = torch.cat(carried)[order]
    return Selection(indices[order], torch.cat(features)[order], assignment, weights, positions)
