"""Merging tokens inside a vision transformer: the maths, apart from any model.

Importing the room imports every file in it; a class that names itself is registered by being there.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from foveate.encoders.merging.bipartite import Tokens, key_bias
from foveate.encoders.merging.method import EncoderMethod, Step

__all__ = ["EncoderMethod", "Step", "Tokens", "encoder_methods", "key_bias"]


@cache
def encoder_methods() -> dict[str, type[EncoderMethod]]:
    """All methods of this room by name, in alphabetical order."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    found: dict[str, type[EncoderMethod]] = {}
    waiting = list(EncoderMethod.__subclasses__())
    while waiting:
        cls = waiting.pop()
        waiting += cls.__subclasses__()
        if "name" not in vars(cls) or not cls.__module__.startswith(f"{__name__}."):
            continue
        if found.setdefault(cls.name, cls) is not cls:
            raise TypeError(f"two methods are called {cls.name!r}: {found[cls.name]} and {cls}")
    return dict(sorted(found.items()))
