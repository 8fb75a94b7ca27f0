"""Merging tokens inside a vision transformer: the maths, apart from any model.

Importing the room imports every file in it; a class that names itself is registered by being there.
"""

from __future__ import annotations

from functools import cache

from foveate.core.bipartite import Tokens, key_bias
from foveate.core.in_encoder import EncoderMethod, Step
from foveate.core.registry import registered

__all__ = ["EncoderMethod", "Step", "Tokens", "encoder_methods", "key_bias"]


@cache
def encoder_methods() -> dict[str, type[EncoderMethod]]:
    """All methods of this room by name, in alphabetical order."""
    return registered(EncoderMethod, __name__, __path__)
