"""PyramidDrop: image tokens dropped in stages, by attention of the prompt's last token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from foveate.core.in_decoder import DecoderScorer, LayerTokens


@dataclass(frozen=True)
class PyramidDrop(DecoderScorer):
    """Keeps, at the first layer of every stage, the tokens that the prompt's last token attends to most in that layer.

    The queries and keys of the layer rank the image before it runs: the softmax over the whole causal row of the
    prompt's last token, averaged over heads. In training the rows before each answer are averaged. A budget is meant
    for every stage: 50 % at three layers leaves 50, 25 and 12.5 % of the image. Positions are counted anew after every
    drop.

    "PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy Reduction" (Xing et al.,
    CVPR 2025, arXiv 2410.17247): four stages of equal length, ratio 0.5. The authors' code does not repeat shared keys
    of grouped-query attention; this does.
    """

    name: ClassVar[str] = "pyramiddrop"
    mechanism: ClassVar = ("attention", "query")
    title: ClassVar[str] = "PyramidDrop: Pyramid Visual Redundancy Reduction"
    paper: ClassVar[str] = "arXiv 2410.17247"
    positions: ClassVar = "contiguous"

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """The first layers of the second, third and fourth quarter: 8, 16 and 24 of 32."""
        return tuple(sorted({max(1, round(num_layers * quarter / 4)) for quarter in (1, 2, 3)} - {num_layers}))

    def score(self, tokens: LayerTokens) -> Tensor:
        """Attention of the prompt's last token, in the layer that is about to run."""
        return tokens.attention("own").attention_received(tokens.prompt.asking, tokens.indices)
