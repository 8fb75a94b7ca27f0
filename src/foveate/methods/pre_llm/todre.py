"""ToDRE, first stage: diverse tokens, starting from the greatest [CLS] attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.core.pre_llm import PreLLMMethod
from foveate.core.tokens import EncoderSpec, Need, Selection, VisualTokens, select_tokens
from foveate.methods.shared.diversity import Cosines, farthest_first, max_sum

Rule = Literal["k-center", "max-sum"]
Pivot = Literal["cls", "center", "farthest"]


@dataclass(frozen=True)
class ToDRE(PreLLMMethod):
    """Starts at the token of greatest [CLS] attention and adds, one by one, the least similar token.

    With s(i, j) = cos(x_i, x_j) of the tokens that the language model would read and C those chosen so far, the next
    token is argmin_i max_{c in C} s(i, c) by the k-center rule of the paper's first version, or argmin_i sum_{c in C}
    s(i, c) by the max-sum rule of its second (ToDRE, arXiv 2505.18757v2, section 4.1, eq. 3 to 7, algorithm 1). All
    crops compete for one budget; the first token, the pivot, comes from the thumbnail where there is one, in a clip
    from all frames. The second stage, which drops all visual tokens in a late layer, is `todre-decoder`; the whole
    paper is `todre:10% + todre-decoder`.

    There is no public code. Pivot, similarity and the max-sum rule follow the second version; what the first version
    takes as pivot and distance could not be checked, and is taken to be the same. Newline tokens are dropped first; the
    paper does not count them. Of equal tokens the first wins.

    Args:
        rule: "k-center" (version 1) or "max-sum" (version 2).
        pivot: "cls"; or "center" or "farthest", the token nearest to or farthest from the mean token, without attention
            (paper, appendix 3.1: within half a point). An encoder without [CLS] takes "farthest" for "cls"; the paper
            allows any token there.
        layer: Encoder block whose [CLS] row is read, 0-based or from the end; None: the one whose output is used. The
            paper says "last layer".
    """

    rule: Rule = "k-center"
    pivot: Pivot = "cls"
    layer: int | None = None

    name: ClassVar[str] = "todre"
    mechanism: ClassVar = ("similarity",)
    title: ClassVar[str] = "ToDRE: Effective Visual Token Pruning via Token Diversity and Task Relevance"
    paper: ClassVar[str] = "arXiv 2505.18757"
    handles_tiles: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule):
            raise FoveateError(f"todre: rule is one of {', '.join(get_args(Rule))}, not {self.rule!r}.")
        if self.pivot not in get_args(Pivot):
            raise FoveateError(f"todre: pivot is one of {', '.join(get_args(Pivot))}, not {self.pivot!r}.")

        if self.pivot != "cls" and self.layer is not None:
            raise FoveateError(f"todre: layer is where the [CLS] row is read, and pivot={self.pivot} reads none.")

    def needs(self, tower: EncoderSpec) -> tuple[Need, ...]:
        """The [CLS] row, for the pivot."""
        if self.pivot != "cls" or not tower.has_cls:
            return ()
        return (Need("cls_attention", tower.layer(self.layer)),)

    def select(self, tokens: VisualTokens, count: int) -> Selection:
        """See `PreLLMMethod.select`."""
        ordinary = torch.arange(len(tokens), device=tokens.device)
        if tokens.separators is not None:
            ordinary = ordinary[~tokens.separators]
        x = tokens.features[ordinary]
        choose = farthest_first if self.rule == "k-center" else max_sum
        first = torch.searchsorted(ordinary, self._pivot(tokens, ordinary))
        return select_tokens(ordinary[choose(Cosines(x, picks=count), first, count)])

    def _pivot(self, tokens: VisualTokens, candidates: Tensor) -> Tensor:
        """Index (1,) of the first token; `candidates` (n,) are the tokens that are no separators."""
        needs = self.needs(tokens.tower)
        if needs:
            if tokens.thumbnail is not None and len(tokens.thumbnail.present):
                candidates = tokens.thumbnail.present
            score = tokens.get(needs[0])[candidates]
        else:
            x = F.normalize(tokens.features[candidates].float(), dim=-1)
            score = F.normalize(x.mean(dim=0), dim=0) @ x.T
            if self.pivot != "center":
                score = -score
        return candidates[score.argmax(dim=0, keepdim=True)]
