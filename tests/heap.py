"""Garbage collection in tests of what is freed.

In a whole run the heap of a worker is so large that searching it takes seconds.
"""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def new_objects_alone() -> Generator[None]:
    """Hide from the garbage collector all objects that are there now; they are neither searched nor counted."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
