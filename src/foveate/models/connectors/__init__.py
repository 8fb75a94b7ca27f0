"""Trainable connectors between a vision tower and a language model."""

from foveate.models.connectors.connector import Connector, ConnectorOptions
from foveate.models.connectors.mlp import MLPConnector
from foveate.models.connectors.registry import (
    all_connectors,
    build_connector,
    connector_named,
    register_connector,
    unregister_connector,
)

__all__ = [
    "Connector",
    "ConnectorOptions",
    "MLPConnector",
    "all_connectors",
    "build_connector",
    "connector_named",
    "register_connector",
    "unregister_connector",
]
