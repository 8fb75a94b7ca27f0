"""Caches that hold fewer bits."""

from foveate.cache.mixed import MixedLayer

__all__ = ["MixedLayer"]
