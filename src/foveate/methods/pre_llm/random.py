"""Random tokens (control)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.core.pre_llm import PreLLMScorer
from foveate.core.tokens import VisualTokens


@dataclass(frozen=True)
class Random(PreLLMScorer):
    """Keeps tokens drawn uniformly at random without replacement.

    A control, not a paper. The draw depends on the seed, the number of the image in its prompt and its number of
    tokens, on nothing else: it is the same on every device, and the global random state is not changed. All crops of a
    tiled image share one draw; newline tokens are not drawn.

    Args:
        seed: Of the draw.
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
