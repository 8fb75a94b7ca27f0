"""Trainers of methods with weights, one file each, found by the name of the method.

What can be trained is read off the files and the entry points of other packages; a trainer's module, and torch with it,
is imported when that trainer is asked for.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.core.errors import FoveateError

if TYPE_CHECKING:
    from foveate.training.methods.shared.base import MethodTrainer

#: Entry points of other packages: the name of a method, and the class that trains it as `module:Class`.
GROUP = "foveate.trainers"
_registered: dict[str, type[MethodTrainer[Any]]] = {}


def register_trainer(trainer: type[MethodTrainer[Any]]) -> type[MethodTrainer[Any]]:
    """Let `foveate train-method` know a trainer of another package; a decorator.

    Raises:
        FoveateError: another trainer has its name.
    """
    if _registered.get(trainer.name, trainer) is not trainer or trainer.name in {**_modules(), **_entry_points()}:
        raise FoveateError(f"there is a trainer of {trainer.name!r} already.")
    _registered[trainer.name] = trainer
    return trainer


def summaries() -> dict[str, str]:
    """What can be trained, by the name of its method, with a line on each; imports nothing."""
    lines = {name: f"From {point.dist.name if point.dist else point.value}." for name, point in _entry_points().items()}
    lines |= {name: _first_line(trainer.__doc__) for name, trainer in _registered.items()}
    lines |= {name: _first_line(ast.get_docstring(ast.parse(path.read_bytes()))) for name, path in _modules().items()}
    return dict(sorted(lines.items()))


def trainer_of(name: str) -> type[MethodTrainer[Any]]:
    """The trainer of a method.

    Raises:
        FoveateError: there is none; the sentence lists those that there are.
        TypeError: a module or an entry point holds no trainer of that name.
    """
    from foveate.training.methods.shared.base import MethodTrainer

    if name in _registered:
        return _registered[name]
    if name in _modules():
        module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
        possible = [thing for thing in vars(module).values() if isinstance(thing, type)]
    elif name in (points := _entry_points()):
        possible = [points[name].load()]
    else:
        raise FoveateError(f"nothing trains {name!r}; possible are {', '.join(summaries())}.")
    for trainer in possible:
        if issubclass(trainer, MethodTrainer) and vars(trainer).get("name") == name:
            return trainer
    raise TypeError(f"{possible} is no MethodTrainer named {name!r}")


def _modules() -> dict[str, Path]:
    """The file of every trainer of this package, by the name of its method."""
    names = [module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg and module.name != "base"]
    specs = {name: find_spec(f"{__name__}.{name}") for name in names}
    return {name.replace("_", "-"): Path(spec.origin) for name, spec in specs.items() if spec and spec.origin}


def _entry_points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _first_line(docstring: str | None) -> str:
    return (docstring or "").strip().partition("\n")[0]
