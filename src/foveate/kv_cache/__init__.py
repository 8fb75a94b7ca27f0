"""Caches that hold fewer bits."""

from foveate.kv_cache.mixed_precision import MixedLayer

__all__ = ["MixedLayer"]
