"""VisionDrop: in stages, keep tokens by attention within the image and merge the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.core.counting import share_of
from foveate.core.errors import FoveateError
from foveate.core.in_decoder import DecoderMethod, LayerTokens
from foveate.core.tokens import Selection
from foveate.methods.shared.dominant_contextual import merge_contextual


@dataclass(frozen=True)
class VisionDrop(DecoderMethod):
    r"""Keeps, at the first layer of every stage, the tokens that the image's own tokens attend to; merges all others.

    Before layer l the queries and keys of that layer give $s_j = \text{mean}_{i \in \text{image}}\,\text{mean}_h\,
    A_h[i, j]$, the softmax over all that token i of the image may attend to. The round(share * count) tokens with the
    highest scores are dominant. Of the M others every (M // c)-th is a target, c = count - dominant; the rest join the
    target whose rotated key (mean over heads) has the greatest cosine with their own; the mean is a contextual token.
    Text takes no part, so that one choice serves all questions. A budget is meant for every stage. Positions are
    counted anew.

    "Rethinking Visual Token Reduction in LVLMs under Cross-modal Misalignment" (Xu et al., AAAI 2026, arXiv
    2506.22283). The stage before the language model is VisionZip: `visionzip(share=0.875):48 + visiondrop:73%` is the
    authors' setting for 32 tokens on average in LLaVA-1.5, 42 + 6 tokens, then 30 + 5, 22 + 4 and 16 + 3 from layers 8,
    16 and 24 on; there [CLS] is one of the 42. Under the causal mask more tokens attend to the first tokens of the
    image; as in the authors' code nothing corrects that. Their code returns target + mean(joined), about twice as long,
    and puts contextual tokens after the dominant ones: `reference` does both; otherwise each takes the place of its
    target. (Models with positions of several axes keep the original ones.)

    Args:
        share: Dominant share of the budget; 6/7 gives the splits above.
        reference: Contextual tokens as in the authors' code, and last.
    """

    share: float = 6 / 7
    reference: bool = False

    name: ClassVar[str] = "visiondrop"
    mechanism: ClassVar = ("attention", "similarity")
    title: ClassVar[str] = "Rethinking Visual Token Reduction in LVLMs under Cross-modal Misalignment"
    paper: ClassVar[str] = "arXiv 2506.22283"
    positions: ClassVar = "contiguous"

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise FoveateError(f"visiondrop: share is the dominant part of the budget, 0 to 1, not {self.share}.")

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """The first layers of the second, third and fourth quarter: 8, 16 and 24 of 32."""
        return tuple(sorted({max(1, round(num_layers * quarter / 4)) for quarter in (1, 2, 3)} - {num_layers}))

    def select(self, tokens: LayerTokens, count: int) -> Selection:
        """See `DecoderMethod.select`."""
        attention = tokens.attention("own")
        scores = attention.attention_received(tokens.indices, tokens.indices)
        keys = attention.key[:, tokens.indices + attention.past].float().mean(dim=0)
        dominant = share_of(self.share, count)
        return merge_contextual(tokens.features, scores, keys, dominant, count - dominant, doubled=self.reference)
