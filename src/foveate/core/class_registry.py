"""Registries of classes by name: those that modules of this library define, and those that a program registers."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Generic, TypeVar

from foveate.core.errors import FoveateError

C = TypeVar("C", bound=type)

#: Names of registered classes, as configurations write them.
NAME = re.compile(r"[a-z][a-z0-9_-]*")


class ClassRegistry(Generic[C]):
    """Classes of one kind by name.

    Args:
        kind: The word for one of them in messages, such as "connector".
        built_in: Returns those of this library; called when a name is first looked up.
        name_of: Returns the name of a class.

    Attributes:
        added: Those that were registered.
    """

    def __init__(self, kind: str, built_in: Callable[[], Mapping[str, C]], name_of: Callable[[C], str]) -> None:
        self.kind = kind
        self.built_in = built_in
        self.name_of = name_of
        self.added: dict[str, C] = {}

    def all(self) -> dict[str, C]:
        """Every class by name, in alphabetical order."""
        return dict(sorted({**self.built_in(), **self.added}.items()))

    def named(self, name: str) -> C:
        """The class of a name.

        Raises:
            FoveateError: There is none; the message names those that exist.
        """
        classes = self.all()
        if name not in classes:
            raise FoveateError(f"there is no {self.kind} {name!r}; possible are {', '.join(classes)}.")
        return classes[name]

    def add(self, cls: C) -> None:
        """Register a class; one that is defined again, as in a notebook, replaces itself.

        Raises:
            FoveateError: Its name is taken.
        """
        name = self.name_of(cls)
        taken = self.built_in().get(name) or self.added.get(name)
        if taken is not None and not _same(taken, cls):
            raise FoveateError(
                f"the name {name!r} is taken by {taken.__module__}.{taken.__qualname__}; give {cls.__qualname__} "
                "another one."
            )
        self.added[name] = cls

    def remove(self, name: str) -> None:
        """Remove a class that was registered.

        Raises:
            FoveateError: No class of this name was registered.
        """
        if name not in self.added:
            raise FoveateError(f"no {self.kind} {name!r} was registered; there are {', '.join(self.added) or 'none'}.")
        del self.added[name]


class NamedClasses(ClassRegistry[C]):
    """Classes that state their `name` and `title`: those of the modules of a package, and those that are registered.

    Args:
        kind: See `ClassRegistry`.
        package: Package whose modules define those of this library; `base` is imported from it.
        base: The class that they derive from.
    """

    def __init__(self, kind: str, package: str, base: type) -> None:
        super().__init__(kind, cache(self._of_modules), _name_of)
        self.package = package
        self.base = base

    def add(self, cls: C) -> None:
        """See `ClassRegistry.add`.

        Raises:
            FoveateError: It does not derive from the base class, lacks a part, or its name is taken.
        """
        check_subclass(self.kind, cls, self.base, self.package)
        name = getattr(cls, "name", None)
        if not isinstance(name, str) or not NAME.fullmatch(name) or not isinstance(getattr(cls, "title", None), str):
            raise FoveateError(
                f"{cls.__qualname__} needs a title, and a name of lower-case letters, digits, - and _, not {name!r}."
            )
        super().add(cls)

    def _of_modules(self) -> Mapping[str, C]:
        path = importlib.import_module(self.package).__path__
        classes = (cls for cls in subclasses_in(self.package, path, self.base) if "name" in vars(cls))
        return by_name(self.kind, classes, _name_of)


def check_subclass(kind: str, cls: Any, base: type, package: str) -> None:
    """Check a class that is going to be registered.

    Args:
        kind: The word for one of them.
        cls: The class.
        base: The class that it must derive from.
        package: Where `base` is imported from.

    Raises:
        FoveateError: It does not derive from `base`, or lacks a method.
    """
    if not isinstance(cls, type) or not issubclass(cls, base):
        raise FoveateError(f"{cls!r} is no {kind}; derive a class from {package}.{base.__name__}.")
    if inspect.isabstract(cls):
        raise FoveateError(f"{cls.__qualname__} lacks {', '.join(sorted(cls.__abstractmethods__))}.")


def subclasses_in(package: str, path: Iterable[str], base: type) -> Iterator[Any]:
    """Subclasses of `base`, however deep, that the modules of a package of this library define.

    Args:
        package: Its name.
        path: Its `__path__`.
        base: The class that they derive from.
    """
    for module in pkgutil.iter_modules(path):
        importlib.import_module(f"{package}.{module.name}")
    waiting = list(base.__subclasses__())
    while waiting:
        cls = waiting.pop()
        waiting += cls.__subclasses__()
        if cls.__module__.startswith(f"{package}."):
            yield cls


def by_name(kind: str, classes: Iterable[Any], name_of: Callable[[Any], str]) -> dict[str, Any]:
    """Classes by name, in alphabetical order.

    Raises:
        TypeError: Two have the same name.
    """
    named: dict[str, Any] = {}
    for cls in classes:
        if named.setdefault(name_of(cls), cls) is not cls:
            raise TypeError(f"two {kind}s are called {name_of(cls)!r}: {named[name_of(cls)]} and {cls}")
    return dict(sorted(named.items()))


def _name_of(cls: Any) -> str:
    return cls.name


def _same(first: type, second: type) -> bool:
    """Whether two classes are one, defined again or imported by another way."""
    if first.__qualname__ != second.__qualname__:
        return False
    return first.__module__ == second.__module__ or _file(first) == _file(second) is not None


def _file(cls: type) -> str | None:
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return None if file is None else str(Path(file).resolve())
