"""Caches with pruned or quantised entries."""

from foveate.kv_cache.mixed_precision import MixedLayer

__all__ = ["MixedLayer"]
