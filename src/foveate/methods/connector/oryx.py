"""The compression of Oryx on request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.methods.connector.nested import Nested


@dataclass(frozen=True)
class Oryx(Nested):
    """Runs the compressor of Oryx at 1, 4 or 16 times fewer tokens, from the same weights.

    Every s x s square of features becomes one token, s = 1, 2 or 4: the mean of the square, and what it attends to in
    the square. In the paper images have s = 1, short videos 2 and long videos 4; here it is chosen per request, by the
    number of tokens (`oryx:144`) or as `oryx:25%` and `oryx:6.25%`, for models with the connector `oryx`. Other numbers
    are refused with those that are possible. The sequence is renumbered.
    """

    name: ClassVar[str] = "oryx"
    mechanism: ClassVar = ("transformation", "query")
    modality: ClassVar = ("image",)
    title: ClassVar[str] = "Oryx MLLM: On-Demand Spatial-Temporal Understanding at Arbitrary Resolution"
    paper: ClassVar[str] = "arXiv 2409.12961"
    connector: ClassVar[str | None] = "oryx"
