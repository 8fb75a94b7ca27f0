"""Random tokens at a decoder layer (control)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.core.in_decoder import DecoderScorer, LayerTokens


@dataclass(frozen=True)
class RandomDecoder(DecoderScorer):
    """Keeps tokens drawn uniformly at random without replacement before a decoder layer.

    A control, not a paper. The draw depends on the seed, the layer, the number of the image in its prompt and its
    number of tokens, on nothing else; the global random state is not changed.

    Args:
        seed: Of the draw.
    """

    seed: int = 0

    name: ClassVar[str] = "random-decoder"
    mechanism: ClassVar = ("control",)
    title: ClassVar[str] = "Random tokens at a layer (control)"

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """Layer 2, as FastV; the last one where there are only two."""
        return (min(2, num_layers - 1),)

    def score(self, tokens: LayerTokens) -> Tensor:
        """The higher, the earlier a token is drawn."""
        seed = (self.seed * 1_009 + tokens.layer) * 1_000_003 + tokens.number
        seed %= 2**63  # what a generator takes
        drawn = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed))
        return -drawn.argsort().to(tokens.device)
