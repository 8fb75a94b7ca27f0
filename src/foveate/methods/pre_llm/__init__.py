"""Training-free (and a few trained) methods before the language model: one file a method.

Importing the room imports every file in it; a class that names itself is registered by being there.
"""

from __future__ import annotations

from functools import cache

from foveate.core.pre_llm import Method
from foveate.core.registry import registered

__all__ = ["Method", "methods"]


@cache
def methods() -> dict[str, type[Method]]:
    """All methods of this room by name, in alphabetical order."""
    return registered(Method, __name__, __path__)
