"""FastV: after two layers, half of the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from foveate.core.in_decoder import DecoderScorer, LayerTokens


@dataclass(frozen=True)
class FastV(DecoderScorer):
    r"""Keeps the tokens that the prompt's last token looked at most in the layer before.

    $\phi_j = \frac1H\sum_h A_h[L, j]$ with the attention $A$ of layer K - 1; the tokens with the largest $\phi$ go on
    to layer K with the positions that they had.

    "An Image is Worth 1/2 Tokens After Layer 2" (Chen et al., ECCV 2024, arXiv 2403.06764). The paper speaks of the
    attention that a token receives from all others; the authors' code, which the paper's numbers come from, reads the
    last row alone, and so does this. Their cacheless code chooses anew for every written token; here, as in their later
    port with a cache, the prompt decides once.
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
        """The attention of the prompt's last token, in the layer before."""
        return tokens.attention("previous").attention_received(tokens.prompt.asking, tokens.indices)
