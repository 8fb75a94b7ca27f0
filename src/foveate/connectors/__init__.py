"""Trainable connectors: what stands between a vision tower and a language model."""

from .mlp import MLPConnector

__all__ = ["MLPConnector"]
