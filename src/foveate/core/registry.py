"""How a package knows its methods: importing it imports every file in it, and a class that names itself is there.

Every method says its mechanism, in the four classes in which surveys of the field sort token compression (arXiv
2507.20198), and its modality:

- "transformation": tokens are pooled, shuffled or resampled, whatever they show;
- "similarity": tokens that are alike are merged or left out;
- "attention": tokens that little attention goes to, in the encoder or in the language model, are left out or merged;
- "query": what the user asks, or learned queries, decide which tokens stay or what they become.

A method may be of several; a "control" is of none.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from typing import Any, Literal, get_args

Mechanism = Literal["transformation", "similarity", "attention", "query", "control"]
Modality = Literal["image", "video", "audio"]


def registered(base: type, room: str, path: Iterable[str]) -> dict[str, Any]:
    """All methods of a room by name, in alphabetical order.

    Args:
        base: The class that they derive from, however deep.
        room: Name of the package.
        path: Its `__path__`.

    Raises:
        TypeError: two methods have one name, or one does not say its mechanism and modality.
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
        for attribute, possible in (("mechanism", get_args(Mechanism)), ("modality", get_args(Modality))):
            said = getattr(cls, attribute, ())
            if not said or not set(said) <= set(possible):
                raise TypeError(f"{cls.name} must say its {attribute}: some of {', '.join(possible)}, not {said!r}")
        if found.setdefault(cls.name, cls) is not cls:
            raise TypeError(f"two methods are called {cls.name!r}: {found[cls.name]} and {cls}")
    return dict(sorted(found.items()))
