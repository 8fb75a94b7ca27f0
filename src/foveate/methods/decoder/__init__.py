"""Methods inside the language model: they leave visual tokens out between decoder layers. One file a method.

Importing the room imports every file in it; a class that names itself is registered by being there.
"""

from __future__ import annotations

from functools import cache

from foveate.core.in_decoder import DecoderMethod, LayerTokens
from foveate.core.registry import registered

__all__ = ["DecoderMethod", "LayerTokens", "decoder_methods"]


@cache
def decoder_methods() -> dict[str, type[DecoderMethod]]:
    """All methods of this room by name, in alphabetical order."""
    return registered(DecoderMethod, __name__, __path__)
