"""DART: pivots and the tokens least similar to them, at a decoder layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.core.errors import FoveateError
from foveate.core.in_decoder import DecoderMethod, LayerTokens
from foveate.core.tokens import Selection, ranked, select_tokens
from foveate.methods.shared.diversity import least_similar_to_pivots


@dataclass(frozen=True)
class DARTDecoder(DecoderMethod):
    """Keeps a few pivots, the tokens with the greatest keys, and for each the tokens least similar to it.

    At layer K the pivots are the visual tokens, and the words of the question, with the greatest $|k|_1$ of their keys
    in layer K - 1 (rotated, all heads). For each pivot p in turn the visual tokens not yet taken with the least cos(p,
    x) are taken, equally many for every pivot; x are the hidden states that enter layer K, after the model's final
    norm. No attention weights are needed. Positions are the original ones.

    "Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More" (Wen et al., EMNLP 2025,
    arXiv 2502.11494): K = 2 and four pivots of either kind. `dart` is our variant before the language model. The
    authors' code visits the pivots in the order of a hash set and keeps m (p + q) + p tokens with m = int(count / (p +
    q)), a few too many. Our choice: visual pivots come first, then words, each by falling norm, and the budget is met
    exactly; what does not divide equally goes to the first pivots. Of equal tokens the first wins.

    Args:
        pivots: Visual pivots p; a budget below them keeps the greatest ones.
        text_pivots: Pivots q from the text after the image.
    """

    pivots: int = 4
    text_pivots: int = 4

    name: ClassVar[str] = "dart-decoder"
    mechanism: ClassVar = ("similarity",)
    title: ClassVar[str] = "Stop Looking for “Important Tokens” in Multimodal Language Models: Duplication Matters More"
    paper: ClassVar[str] = "arXiv 2502.11494"
    needs_previous_attention: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.pivots < 1:
            raise FoveateError(f"dart-decoder: pivots is a number of tokens from 1 on, not {self.pivots}.")
        if self.text_pivots < 0:
            raise FoveateError(f"dart-decoder: text_pivots is a number of words from 0 on, not {self.text_pivots}.")

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """Layer 2, the paper's K; the last one where there are only two."""
        return (min(2, num_layers - 1),)

    def select(self, tokens: LayerTokens, count: int) -> Selection:
        """See `DecoderMethod.select`."""
        attention = tokens.attention("previous")
        norms = attention.key[:, attention.past :].float().abs().sum(dim=(0, 2))
        pivots = ranked(norms[tokens.indices], min(self.pivots, count))
        words = tokens.question[ranked(norms[tokens.question], self.text_pivots)]
        norm = tokens.model.norm
        x, others = norm(tokens.features), norm(tokens.prompt.hidden[words])
        return select_tokens(least_similar_to_pivots(x, pivots, others, count))
