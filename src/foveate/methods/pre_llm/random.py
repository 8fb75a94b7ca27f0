"""Random tokens, the control that every method has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.core.pre_llm import PreLLMScorer
from foveate.core.tokens import VisualTokens


@dataclass(frozen=True)
class Random(PreLLMScorer):
    """Keeps tokens drawn at random without replacement, every one with the same chance.

    A control, not a paper. The draw depends on the seed, on the number of the image in its prompt and on how many
    tokens it has, on nothing else: it is the same on every device, and the global random state is left alone. Tiled
    images are one urn; newline tokens are not drawn.

    Args:
        seed: Another one draws other tokens.
    """

    seed: int = 0

    name: ClassVar[str] = "random"
    mechanism: ClassVar = ("control",)
    title: ClassVar[str] = "Random tokens (control)"
    handles_tiles: ClassVar[bool] = True

    def score(self, tokens: VisualTokens) -> Tensor:
        """The higher, the earlier a token is drawn; newline tokens last."""
        ordinary = torch.arange(len(tokens), device=tokens.device)
        if tokens.separators is not None:
            ordinary = ordinary[~tokens.separators]
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + tokens.number) % 2**63)
        drawn = ordinary[torch.randperm(len(ordinary), generator=generator).to(tokens.device)]
        score = torch.full((len(tokens),), -len(tokens), device=tokens.device)
        score[drawn] = -torch.arange(len(drawn), device=tokens.device)
        return score
