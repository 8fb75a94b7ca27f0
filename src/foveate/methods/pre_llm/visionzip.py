"""VisionZip: dominant tokens, and the rest merged into contextual tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.core.counting import share_of
from foveate.core.errors import FoveateError
from foveate.core.pre_llm import PreLLMMethod
from foveate.core.tokens import EncoderSpec, Need, Selection, VisualTokens
from foveate.methods.shared.dominant_contextual import merge_contextual


@dataclass(frozen=True)
class VisionZip(PreLLMMethod):
    """Keeps the patches with the greatest [CLS] attention and merges the others by the similarity of their keys.

    Dominant tokens: the round(share * count) patches of greatest a = mean_h A[h, CLS, 1:] at the block whose output the
    language model reads. Contextual tokens: of the M remaining patches, in raster order, every (M // c)-th is a target,
    c = count - dominant; every other patch joins the target whose key (mean over heads) has the greatest cosine with
    its own; a contextual token is the mean of the target and the patches that joined it (VisionZip, arXiv 2412.04467).
    An encoder without [CLS] ranks by attention received, as the paper does for SigLIP.

    The authors' code returns target + mean(joined), about twice as long, instead of the average that the paper
    describes: `reference=True`. It merges before the connector, this after it. It also passes the [CLS] token itself to
    the language model and counts it as dominant ("54 + 10" is [CLS], 53 patches and 10 contextual tokens); here the
    language model reads patches only, so a budget of 64 is 54 patches and 10 contextual tokens. Contextual tokens take
    the place of their target; with `reference` they are read after all dominant ones (of a tile), as there.

    Args:
        share: Dominant share of the budget. The paper's splits 54 + 10, 108 + 20 and 162 + 30 are all 27 / 32.
        layer: Encoder block to read, 0-based or from the end; None: the one whose output is used.
        reference: Contextual tokens as in the authors' code, and last.
    """

    share: float = 27 / 32
    layer: int | None = None
    reference: bool = False

    name: ClassVar[str] = "visionzip"
    mechanism: ClassVar = ("attention", "similarity")
    title: ClassVar[str] = "VisionZip: Longer is Better but Not Necessary in Vision Language Models"
    paper: ClassVar[str] = "arXiv 2412.04467"

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise FoveateError(f"visionzip: share is the dominant part of the budget, 0 to 1, not {self.share}.")

    def needs(self, tower: EncoderSpec) -> tuple[Need, ...]:
        """The [CLS] row and the keys."""
        layer = tower.layer(self.layer)
        return (Need("cls_attention", layer, substitute=True), Need("keys", layer))

    def select(self, tokens: VisualTokens, count: int) -> Selection:
        """See `PreLLMMethod.select`."""
        attention, keys = (tokens.get(need) for need in self.needs(tokens.tower))
        dominant = share_of(self.share, count)
        return merge_contextual(tokens.features, attention, keys, dominant, count - dominant, doubled=self.reference)
