"""VTW: drop all visual tokens at a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from foveate.core.in_decoder import DecoderMethod, LayerTokens
from foveate.core.tokens import Selection


@dataclass(frozen=True)
class VTW(DecoderMethod):
    """Drops all visual tokens before a layer: by then their information has moved into the text.

    "Boosting Multimodal Large Language Models with Visual Tokens Withdrawal for Rapid Inference" (Lin et al., AAAI
    2025, arXiv 2405.05803). The paper searches the layer for each model and task: the first whose withdrawal hardly
    changes the distribution of the next token on a few samples. Without an @ it is the one of the authors' code, 15 of
    32 counted from 0, which is the 16th.
    """

    name: ClassVar[str] = "vtw"
    mechanism: ClassVar = ("attention",)
    title: ClassVar[str] = "Visual Tokens Withdrawal"
    paper: ClassVar[str] = "arXiv 2405.05803"
    budget: ClassVar = "none"

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """Layer 15 of 32."""
        return (min(max(1, round(num_layers * 15 / 32)), num_layers - 1),)

    def remaining_tokens(self, tokens: int, count: int | None) -> int:
        """See `DecoderMethod.remaining_tokens`."""
        return 0

    def select(self, tokens: LayerTokens, count: int) -> Selection:
        """See `DecoderMethod.select`."""
        return Selection(torch.zeros(0, dtype=torch.int64, device=tokens.device))
