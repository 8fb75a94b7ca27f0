"""The only code that touches a live model: attach, measure, shorten, restore."""

from __future__ import annotations

from foveate.runtime.attach import Handle, compress, handle_of
from foveate.runtime.contrasting import vasparse
from foveate.runtime.speculating import Speculation, speculate

__all__ = ["Handle", "Speculation", "compress", "handle_of", "speculate", "vasparse"]
