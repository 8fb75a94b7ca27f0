"""An example of a foveate method in a separate package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from foveate import register_method
from foveate.core.pre_llm import PreLLMScorer
from foveate.core.tokens import VisualTokens


@register_method
@dataclass(frozen=True)
class Brightest(PreLLMScorer):
    """Keeps the tokens with the longest embeddings.

    Args:
        power: Of the norm, 1 or more.
    """

    power: float = 2.0

    name: ClassVar[str] = "brightest"
    title: ClassVar[str] = "The longest embeddings (example)"
    mechanism: ClassVar = ("transformation",)

    def score(self, tokens: VisualTokens) -> Tensor:
        """The norm of each embedding."""
        return tokens.features.double().norm(p=self.power, dim=1)
