"""FastV: tokens that the prompt's last token attends to in the previous layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from foveate.core.in_decoder import DecoderScorer, LayerTokens


@dataclass(frozen=True)
class FastV(DecoderScorer):
    r"""Keeps the tokens that the prompt's last token attends to most in the previous layer.

    $\phi_j = \frac1H\sum_h A_h[L, j]$ with the attention $A$ of layer K - 1; the tokens with the largest $\phi$ go on
    to layer K with their original positions.

    "An Image is Worth 1/2 Tokens After Layer 2" (Chen et al., ECCV 2024, arXiv 2403.06764). The paper speaks of the
    attention that a token receives from all others; the authors' code, which the paper's numbers come from, reads the
    last row alone, and so does this. Their code without a cache chooses again for every generated token; here, as in
    their later port with a cache, the choice is made once, for the prompt.
    """

    name: ClassVar[str] = "fastv"
    mechanism: ClassVar = ("attention",)
    title: ClassVar[str] = "An Image is Worth 1/2 Tokens After Layer 2"
    paper: ClassVar[str] = "arXiv 2403.06764"
    needs_previous_attention: ClassVar[bool] = True

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """Layer 2, the paper's K; the last one where there are only two."""
        return (min(2, num_layers - 1),)

    def score(self, tokens: LayerTokens) -> Tensor:
        """Attention of the prompt's last token, in the previous layer."""
        return tokens.attention("previous").attention_received(tokens.prompt.asking, tokens.indices)
