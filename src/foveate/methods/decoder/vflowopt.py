"""VFlowOpt, second stage: the encoder's scores, applied between decoder layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.core.in_decoder import DecoderScorer, LayerTokens
from foveate.core.tokens import EncoderSpec, Need
from foveate.methods.pre_llm.vflowopt import hub_need


@dataclass(frozen=True)
class VFlowOptDecoder(DecoderScorer):
    """Keeps, at layers of the language model, the tokens that the encoder's attention hubs attend to most.

    The score is that of the first stage, `vflowopt`, where plans for both are: the attention that a patch receives in
    the encoder from hubs, patches that receive more than `threshold` times the mean, mean over heads and hubs. A merged
    token has the score of the best of its members. Newline tokens are dropped last. No attention of the language model
    is needed, and nothing is merged. Positions are the original ones.

    "VFlowOpt: A Token Pruning Framework for LMMs with Visual Information Flow-Guided Optimization" (Yang et al., ICCV
    2025, arXiv 2508.05211). The paper speaks of recycling in every stage; the authors' code has none here, and so has
    this. A budget is meant for every layer that is named; the authors have one for each. Entropy, which their released
    settings do without, is not part of the score here.

    Args:
        threshold: Of hubs, times the mean, as in the first stage.
        layer: Encoder block to read, 0-based or from the end; None: the one whose output is used.
    """

    threshold: float = 39.265
    layer: int | None = None

    name: ClassVar[str] = "vflowopt-decoder"
    mechanism: ClassVar = ("attention",)
    title: ClassVar[str] = "VFlowOpt: Token Pruning for LMMs with Visual Information Flow-Guided Optimization"
    paper: ClassVar[str] = "arXiv 2508.05211"

    def __post_init__(self) -> None:
        if self.threshold < 0:
            raise FoveateError(f"vflowopt-decoder: threshold is a number from 0 on, not {self.threshold}.")

    def needs(self, tower: EncoderSpec) -> tuple[Need, ...]:
        """Attention from the hubs."""
        return (hub_need(tower, self.threshold, self.layer),)

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """Layers 9 and 18 of 28."""
        scaled = {min(max(1, round(num_layers * layer / 28)), num_layers - 1) for layer in (9, 18)}
        return tuple(sorted(scaled))

    def score(self, tokens: LayerTokens) -> Tensor:
        """Attention from the encoder's hubs; newline tokens highest."""
        scores = tokens.get(*self.needs(tokens.encoder.tower)).float()
        return scores if tokens.encoder.separators is None else scores.masked_fill(tokens.encoder.separators, torch.inf)
