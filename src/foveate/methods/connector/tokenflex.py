"""The length of TokenFLEX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.methods.connector.nested import Nested


@dataclass(frozen=True)
class TokenFLEX(Nested):
    """Pools the features to n x n before the projector of a model with the connector `tokenflex`, any n^2 per request.

    TokenFLEX (Hu et al., arXiv 2504.03154), whose models are trained at 64, 144 and 256 tokens. Budgets that are no
    square number are refused.
    """

    name: ClassVar[str] = "tokenflex"
    title: ClassVar[str] = "TokenFLEX: Unified VLM Training for Flexible Visual Tokens Inference"
    paper: ClassVar[str] = "arXiv 2504.03154"
    connector: ClassVar[str | None] = "tokenflex"
