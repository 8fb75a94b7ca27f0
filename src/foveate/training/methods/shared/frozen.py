"""Freeze a model's weights while another network is trained."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager

from torch import nn

_lock = threading.Lock()
#: Parameters that are frozen, and how often.
_frozen: Counter[nn.Parameter] = Counter()


@contextmanager
def frozen(model: nn.Module) -> Generator[None]:
    """Freeze all parameters while the context is open; with several threads, until the last one exits."""
    with _lock:
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad or _frozen[parameter]]
        for parameter in learning:
            _frozen[parameter] += 1
            parameter.requires_grad_(False)
    try:
        yield
    finally:
        with _lock:
            for parameter in learning:
                _frozen[parameter] -= 1
                if not _frozen[parameter]:
                    del _frozen[parameter]
                    parameter.requires_grad_(True)
