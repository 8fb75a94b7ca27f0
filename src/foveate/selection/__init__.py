"""Training-free (and a few trained) methods before the language model: one file a method.

Importing the room imports every file in it; a class that names itself is registered by being there.
"""

from __future__ import annotations

from functools import cache

from foveate.registry import registered
from foveate.selection.method import Method

__all__ = ["Method", "methods"]


@cache
def methods() -> dict[str, type[Method]]:
    """All methods of this room by name, in alphabetical order."""
    return registered(Method, __name__, __path__)
