"""Trainable connectors between a vision tower and a language model."""

from foveate.models.connectors.mlp import MLPConnector

__all__ = ["MLPConnector"]
