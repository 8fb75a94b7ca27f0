"""How a room knows its methods: importing the room imports every file in it, and a class that names itself is there."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from typing import Any


def registered(base: type, room: str, path: Iterable[str]) -> dict[str, Any]:
    """All methods of a room by name, in alphabetical order.

    Args:
        base: The class that they derive from, however deep.
        room: Name of the package.
        path: Its `__path__`.

    Raises:
        TypeError: two methods have one name.
    """
    for module in pkgutil.iter_modules(path):
        importlib.import_module(f"{room}.{module.name}")
    found: dict[str, Any] = {}
    waiting = list(base.__subclasses__())
    while waiting:
        cls: Any = waiting.pop()
        waiting += cls.__subclasses__()
        if "name" not in vars(cls) or not cls.__module__.startswith(f"{room}."):
            continue
        if found.setdefault(cls.name, cls) is not cls:
            raise TypeError(f"two methods are called {cls.name!r}: {found[cls.name]} and {cls}")
    return dict(sorted(found.items()))
