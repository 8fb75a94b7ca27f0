"""D-CoDe: tokens of large norm in every frame, and similar ones of a frame as one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.counting import share_of
from foveate.core.errors import FoveateError
from foveate.core.method import BudgetRule
from foveate.core.pre_llm import divide
from foveate.core.tokens import Selection, VisualTokens, in_order, wide
from foveate.core.video import VideoMethod

Merge = Literal["mean", "max", "weighted"]


class Groups(NamedTuple):
    """Tokens that are merged into rows; a token may be in several.

    Args:
        centres: (k,) the token at which every row stands.
        rows: (p,) the row of every membership, ascending.
        members: (p,) its token.
    """

    centres: Tensor
    rows: Tensor
    members: Tensor


@dataclass(frozen=True)
class DCoDe(VideoMethod):
    """Keeps the tokens of every frame with the greatest norm, and merges similar ones of a frame.

    Of the N tokens of a frame the N * `keep` with the greatest L2 norm are read, by falling norm. A token whose cosine
    with none of the rows before it is `threshold` or more begins a row; the others go into the first row that is so
    similar. A row is the mean of its tokens, their maximum, or their mean weighted by norm (D-CoDe, arXiv 2510.08818,
    dynamic compression). `diverse-frames` chooses frames as the paper does, and `foveate.answering.ask_decomposed` asks
    by its sub-questions. With a budget, frames share it equally, and as many tokens of a frame are read as its share
    has rows for; where all tokens make fewer, merged tokens of the greatest norm stay by themselves as well.

    `form="code"` is the merge of the authors' code. It compares with all tokens that are read, in a row or not: a row
    is made of all that are similar to its first token, so that a token may be in several; and a row whose first token
    is similar to a token before it is lost, with what is in it alone. Rows are read by falling norm, where here they
    are in the order of the raster. The number kept is 288 of 576 for 7B models and 320 for 34B (`keep=320/576`).

    Args:
        keep: Without a budget: share of the tokens of a frame that are read.
        threshold: Cosine from which tokens are merged.
        merge: "mean", "max" or "weighted".
        form: "paper" or "code".
    """

    keep: float = 0.5
    threshold: float = 0.8
    merge: Merge = "mean"
    form: Literal["paper", "code"] = "paper"

    name: ClassVar[str] = "dcode"
    mechanism: ClassVar = ("similarity",)
    title: ClassVar[str] = (
        "D-CoDe: Scaling Image-Pretrained VLMs to Video via Dynamic Compression and Question Decomposition"
    )
    paper: ClassVar[str] = "arXiv 2510.08818"
    static_count: ClassVar[bool] = False
    budget: ClassVar[BudgetRule] = "optional"
    without_budget: ClassVar = ("keep",)

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise FoveateError(f"dcode: keep is a share, above 0 up to 1, not {self.keep}.")
        if not -1 <= self.threshold <= 1:
            raise FoveateError(f"dcode: threshold is a cosine, -1 to 1, not {self.threshold}.")
        if self.merge not in get_args(Merge):
            raise FoveateError(f"dcode: merge is mean, max or weighted, not {self.merge!r}.")
        if self.form not in ("paper", "code"):
            raise FoveateError(f'dcode: form is "paper" or "code", not {self.form!r}.')

    def select(self, tokens: VisualTokens, count: int) -> Selection:
        """See `VideoMethod.select`."""
        place, frames = tokens.frame_indices, tokens.frames.float()
        norms = frames.norm(dim=-1)
        order = norms.argsort(dim=1, descending=True, stable=True)
        size = place.shape[1]
        shares = divide(count, [size] * len(place)) if count else [0] * len(place)
        read = size if count else max(1, share_of(self.keep, size, "down"))
        parts, rows = [], 0
        for number, share in enumerate(shares):
            if count and not share:
                continue
            first = order[number, :read]
            part = self._grouped(F.normalize(frames[number, first], dim=-1), share)
            own = place[number, first]
            parts.append(Groups(own[part.centres], part.rows + rows, own[part.members]))
            rows += len(part.centres)
        groups = Groups(*map(torch.cat, zip(*parts, strict=True)))
        weights = norms.new_ones(len(tokens))
        if self.merge == "weighted":
            weights[place] = norms.clamp(min=torch.finfo(norms.dtype).tiny)
        return self._selection(tokens.features, groups, weights)

    def _grouped(self, unit: Tensor, count: int) -> Groups:
        """Groups among the tokens of one frame, as unit vectors (K, D) by falling norm; `count` of them, or 0: all."""
        similar = (unit @ unit.T >= self.threshold).fill_diagonal_(True)
        earlier = similar.tril(-1)
        begins = _first_of_their_kind(similar)
        if self.form == "code":
            begins &= ~earlier.any(dim=1)
        centres = begins.nonzero().flatten()
        if count and len(centres) > count:
            similar, centres = similar[: int(centres[count])], centres[:count]
        member = similar[:, centres]
        if self.form == "paper":
            member &= member.cumsum(dim=1) == 1
        if len(centres) < count:
            alone = (~begins).nonzero().flatten()[: count - len(centres)]
            member[alone] = False
            member = torch.cat([member, F.one_hot(alone, len(unit)).T.bool()], dim=1)
            centres = torch.cat([centres, alone])
            by_norm = centres.argsort()
            centres, member = centres[by_norm], member[:, by_norm]
        rows, members = member.T.nonzero(as_tuple=True)
        return Groups(centres, rows, members)

    def _selection(self, features: Tensor, groups: Groups, weights: Tensor) -> Selection:
        """The rows as a selection; `weights` (N,) of the tokens within a row."""
        indices, order = groups.centres.sort()
        rank = order.argsort()
        read = Groups(indices, rank[groups.rows], groups.members)
        share = _shares(weights[read.members], read.rows, len(indices))
        remade = partial(_rows, groups=read, share=share, maximum=self.merge == "max")
        # A token in several rows is shown, and merged in DeepStack features, with that of the greatest norm.
        none = len(indices)
        first = torch.full((len(features),), none, device=features.device)
        first = first.scatter_reduce(0, groups.members, groups.rows, "amin")
        used = first < none
        assignment = torch.full_like(first, -1)
        assignment[used] = rank[first[used]]
        shown = torch.zeros_like(weights)
        shown[used] = _shares(weights[used], assignment[used], none)
        selection = Selection(indices, remade(features), assignment, shown, remade=remade)
        if self.form == "paper":
            return selection
        return replace(in_order(selection, features, rank), remade=lambda x: remade(x)[rank])


def _first_of_their_kind(similar: Tensor) -> Tensor:
    """(K,) whether a token is similar to none of those before it of which the same is true.

    In rounds: those that no undecided token before is similar to are such tokens, and exclude what is similar to them.
    """
    undecided = similar.new_ones(len(similar))
    chosen = ~undecided
    earlier = similar.tril(-1)
    while bool(undecided.any()):
        new = undecided & ~(earlier & undecided).any(dim=1)
        chosen |= new
        undecided &= ~(similar & new).any(dim=1)
    return chosen


def _shares(weights: Tensor, rows: Tensor, count: int) -> Tensor:
    """Weights (p,) of tokens in `count` rows as shares of their row."""
    return weights / weights.new_zeros(count).index_add(0, rows, weights)[rows]


def _rows(features: Tensor, groups: Groups, share: Tensor, maximum: bool) -> Tensor:
    """(k, D) the rows, of features (N, D): sums of the members with their shares, or maxima."""
    x = wide(features[groups.members])
    out = x.new_zeros(len(groups.centres), x.shape[1])
    if maximum:
        out = out.scatter_reduce(0, groups.rows[:, None].expand_as(x), x, "amax", include_self=False)
    else:
        out = out.index_add(0, groups.rows, x * share[:, None].to(x.dtype))
    return out.to(features.dtype)
