"""The only code that touches a live model: attach, measure, shorten, restore."""

from __future__ import annotations

from foveate.runtime.attach import Handle, compress, handle_of

__all__ = ["Handle", "compress", "handle_of"]
