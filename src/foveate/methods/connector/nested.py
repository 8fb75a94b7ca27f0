"""The length of any nested connector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.core.connector import ConnectorMethod


@dataclass(frozen=True)
class Nested(ConnectorMethod):
    """Runs the nested connector of a model at the requested number of tokens, from the same weights.

    Not one paper: it is for every model whose connector was trained to give several lengths, and needs a model of
    foveate with such a connector (`foveate.models.connectors`). Nothing is dropped or merged after the connector, so
    that the tokens are exactly those of a model that is configured for this length. Numbers that the connector cannot
    give are refused with those that it can. The sequence is renumbered.
    """

    name: ClassVar[str] = "nested"
    mechanism: ClassVar = ("transformation",)
    modality: ClassVar = ("image",)
    title: ClassVar[str] = "Length of a nested connector"
