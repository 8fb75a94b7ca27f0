"""Models whose weights stay as they are while something beside them is trained."""

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
    """No parameter takes part in a backward pass; where threads freeze a model together, until the last has done."""
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
