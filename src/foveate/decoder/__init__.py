"""Methods inside the language model: they leave visual tokens out between decoder layers. One file a method.

Importing the room imports every file in it; a class that names itself is registered by being there.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from foveate.decoder.method import DecoderMethod, LayerTokens

__all__ = ["DecoderMethod", "LayerTokens", "decoder_methods"]


@cache
def decoder_methods() -> dict[str, type[DecoderMethod]]:
    """All methods of this room by name, in alphabetical order."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    found: dict[str, type[DecoderMethod]] = {}
    waiting = list(DecoderMethod.__subclasses__())
    while waiting:
        cls = waiting.pop()
        waiting += cls.__subclasses__()
        if "name" not in vars(cls) or not cls.__module__.startswith(f"{__name__}."):
            continue
        if found.setdefault(cls.name, cls) is not cls:
            raise TypeError(f"two methods are called {cls.name!r}: {found[cls.name]} and {cls}")
    return dict(sorted(found.items()))
