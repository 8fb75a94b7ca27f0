"""DART before the language model: pivots and the tokens least similar to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.core.pre_llm import PreLLMMethod
from foveate.core.tokens import EncoderSpec, Need, Selection, VisualTokens, ranked, select_tokens
from foveate.methods.shared.diversity import least_similar_to_pivots


@dataclass(frozen=True)
class DART(PreLLMMethod):
    """Keeps a few pivots, the tokens of greatest norm, and for each pivot the tokens least similar to it.

    The pivots P are the tokens with the greatest |x|_1; for each in turn, the tokens not yet taken with the least
    cos(p, x) are taken, equally many for every pivot (DART, arXiv 2502.11494, section 3.3, definitions 1 and 2).
    Newline tokens compete like all others. Positions are the original ones, as in the authors' code.

    This is our variant, which shortens the first two layers too. The paper prunes after the second layer of the
    language model, with the norm of the keys, the cosine of the hidden states after the final norm, and four text
    tokens among eight pivots: `dart-decoder`. Here norm and cosine are those of the tokens that the language model
    would read, and by default all pivots are visual. The authors visit the pivots in the order of a hash set and keep a
    few tokens more than asked for; here visual pivots come first, then text, each by falling norm, and the budget is
    met exactly: what does not divide equally goes to the first pivots. Of equal tokens the first wins.

    Args:
        pivots: Visual pivots; a budget below them keeps the greatest ones.
        text_pivots: Pivots from the question, its words of greatest norm; they are not kept themselves.
    """

    pivots: int = 8
    text_pivots: int = 0

    name: ClassVar[str] = "dart"
    mechanism: ClassVar = ("similarity",)
    title: ClassVar[str] = "Stop Looking for “Important Tokens” in Multimodal Language Models: Duplication Matters More"
    paper: ClassVar[str] = "arXiv 2502.11494"
    handles_tiles: ClassVar[bool] = True
    sees_separators: ClassVar[bool] = True
    positions: ClassVar = "original"

    def __post_init__(self) -> None:
        if self.pivots < 1:
            raise FoveateError(f"dart: pivots is a number of tokens from 1 on, not {self.pivots}.")
        if self.text_pivots < 0:
            raise FoveateError(f"dart: text_pivots is a number of words from 0 on, not {self.text_pivots}.")

    def needs(self, tower: EncoderSpec) -> tuple[Need, ...]:
        """The question, for pivots of text."""
        return (Need("instruction"),) if self.text_pivots else ()

    def select(self, tokens: VisualTokens, count: int) -> Selection:
        """See `PreLLMMethod.select`."""
        x = tokens.features
        pivots = ranked(_norms(x), min(self.pivots, count))
        words = tokens.get(Need("instruction")) if self.text_pivots else x[:0]
        words = words[ranked(_norms(words), self.text_pivots)]
        return select_tokens(least_similar_to_pivots(x, pivots, words, count))


def _norms(x: Tensor) -> Tensor:
    return x.float().abs().sum(dim=1)
