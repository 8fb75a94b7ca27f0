"""FasterVLM: the patches with the greatest [CLS] attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from foveate.core.pre_llm import PreLLMScorer
from foveate.core.tokens import EncoderSpec, Need, VisualTokens


@dataclass(frozen=True)
class FasterVLM(PreLLMScorer):
    """Keeps the patches with the greatest attention of the encoder's [CLS] token.

    a = mean_h A[h, CLS, 1:] at the block whose output the language model reads (block 22 of CLIP ViT-L in LLaVA); the
    `count` greatest stay, in raster order (FasterVLM, arXiv 2412.01818v1, section 3.2). Tiled images divide the budget
    over their crops in proportion to the tokens of each. An encoder without [CLS] ranks by attention received.

    Args:
        layer: Encoder block to read, 0-based or from the end; None: the one whose output is used. The paper's wording
            ("last layer") differs from its code, which reads the used one.
    """

    layer: int | None = None

    name: ClassVar[str] = "fastervlm"
    mechanism: ClassVar = ("attention",)
    title: ClassVar[str] = "[CLS] Attention is All You Need for Training-Free Visual Token Pruning"
    paper: ClassVar[str] = "arXiv 2412.01818"

    def needs(self, tower: EncoderSpec) -> tuple[Need, ...]:
        """The [CLS] row."""
        layer = tower.layer(self.layer)
        return (Need("cls_attention", layer, substitute=True),)

    def score(self, tokens: VisualTokens) -> Tensor:
        """The [CLS] attention."""
        return tokens.get(*self.needs(tokens.tower))
