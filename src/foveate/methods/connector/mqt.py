"""The length of MQT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.methods.connector.nested import Nested


@dataclass(frozen=True)
class MQT(Nested):
    """Uses the first m of the learned queries of a model with the connector `mqt`, any m per request.

    Matryoshka Query Transformer (Hu et al., arXiv 2405.19315). Tokens for m are the first m of those for all queries.
    Models of the paper have 256, and are trained at all even numbers up to that.
    """

    name: ClassVar[str] = "mqt"
    title: ClassVar[str] = "Matryoshka Query Transformer for Large Vision-Language Models"
    paper: ClassVar[str] = "arXiv 2405.19315"
    connector: ClassVar[str | None] = "mqt"
