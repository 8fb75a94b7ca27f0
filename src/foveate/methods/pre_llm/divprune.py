"""DivPrune: the most diverse tokens, by greedy max-min distance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.core.pre_llm import PreLLMMethod
from foveate.core.tokens import Selection, VisualTokens, select_tokens
from foveate.methods.shared.diversity import Cosines, farthest_first


@dataclass(frozen=True)
class DivPrune(PreLLMMethod):
    """Keeps a subset of tokens whose least pairwise distance is as great as possible, chosen greedily.

    With the distance d(i, j) = 1 - cos(x_i, x_j) of the tokens that the language model would read, the first pick is
    argmax_i min_{j != i} d(i, j); each further one is the token farthest from those picked, argmax_i min_{j in S} d(i,
    j) (DivPrune, arXiv 2503.02175, eq. 3 and algorithm 1). No attention, no text. Newline tokens compete like all
    others.

    Computed in float32; the authors compute in the model's precision, which gives other picks in half precision. Of
    equal distances the first token wins, and no token is picked twice.
    """

    name: ClassVar[str] = "divprune"
    mechanism: ClassVar = ("similarity",)
    title: ClassVar[str] = "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models"
    paper: ClassVar[str] = "arXiv 2503.02175"
    handles_tiles: ClassVar[bool] = True
    sees_separators: ClassVar[bool] = True

    def select(self, tokens: VisualTokens, count: int) -> Selection:
        """See `PreLLMMethod.select`."""
        cosines = Cosines(tokens.features, picks=len(tokens))  # the first pick compares all with all
        return select_tokens(farthest_first(cosines, cosines.nearest().argmin(dim=0, keepdim=True), count))
