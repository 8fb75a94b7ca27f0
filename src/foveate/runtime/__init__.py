"""Attach plans to live models: hooks that measure, prune and restore."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foveate.runtime.attach import Handle, compress, handle_of
    from foveate.runtime.contrastive import vasparse
    from foveate.runtime.feature_reuse import FeatureReuse, reuse_features
    from foveate.runtime.speculative import Speculation, speculate

_MODULES = {
    "FeatureReuse": "feature_reuse",
    "Handle": "attach",
    "Speculation": "speculative",
    "compress": "attach",
    "handle_of": "attach",
    "reuse_features": "feature_reuse",
    "speculate": "speculative",
    "vasparse": "contrastive",
}

__all__ = ["FeatureReuse", "Handle", "Speculation", "compress", "handle_of", "reuse_features", "speculate", "vasparse"]


def __getattr__(name: str) -> Any:
    """Import a public name on first use: models import `compat`, and this package imports the models' families."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
