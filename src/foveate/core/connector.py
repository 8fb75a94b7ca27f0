"""Base class of methods that choose the length of a nested connector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.core.method import Method, Site


@dataclass(frozen=True)
class ConnectorMethod(Method):
    """A method that runs the nested connector of a model at another length: the budget is the number of tokens.

    For connectors that must run again at the other length, because the number of tokens changes what their projector
    reads. The runtime passes the budget to `get_image_features`; the connector decides which numbers are possible.
    """

    site: ClassVar[Site] = Site.CONNECTOR
    shortens_encoder: ClassVar[bool] = True
    #: `connector_type` of the models that it is for; None: every nested connector.
    connector: ClassVar[str | None] = None
