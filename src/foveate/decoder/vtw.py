"""VTW: no image at all after half of the layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from foveate.decoder.method import DecoderMethod, LayerTokens
from foveate.tokens import Selection


@dataclass(frozen=True)
class VTW(DecoderMethod):
    """Withdraws all visual tokens before a layer: what they say has moved into the text by then.

    "Boosting Multimodal Large Language Models with Visual Tokens Withdrawal for Rapid Inference" (Lin et al., AAAI
    2025, arXiv 2405.05803). The paper searches the layer for each task: the first whose withdrawal hardly changes the
    distribution of the next token on a few samples. The middle is a choice of ours; name yours after an @.
    """

    name: ClassVar[str] = "vtw"
    title: ClassVar[str] = "Visual Tokens Withdrawal"
    paper: ClassVar[str] = "arXiv 2405.05803"
    budget: ClassVar = "none"

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """The middle: layer 16 of 32."""
        return (max(1, num_layers // 2),)

    def left(self, tokens: int, count: int | None) -> int:
        """See `DecoderMethod.left`."""
        return 0

    def select(self, tokens: LayerTokens, count: int) -> Selection:
        """See `DecoderMethod.select`."""
        return Selection(torch.zeros(0, dtype=torch.int64, device=tokens.device))
