"""Token reduction methods: `foveate.methods()` returns those that a plan can name, as classes by name.

One folder a site, one file a method. Every built-in class can be imported from here by its own name:

    from foveate.methods import DivPrune

    foveate.methods("*prune*")["divprune"] is DivPrune

The classes are imported when the first of them is used, so that `foveate methods`, which needs the index in this folder
alone, does not wait for torch.
"""

from __future__ import annotations

import pkgutil
import sys
from difflib import get_close_matches
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foveate.core.method import Method


class _Package(ModuleType):
    """A package that can be called.

    `foveate.methods` has to be a package, for imports from it, and the function that lists its content. Python allows
    both: `__class__` of a module may be a subclass of `ModuleType` ("Customizing module attribute access" in its
    reference). A function of the same name in `foveate` would be replaced by the package as soon as any of its modules
    is imported.
    """

    def __call__(self, pattern: str | None = None) -> dict[str, type[Method]]:
        """Return the methods that a plan can name, those of other packages included, in alphabetical order.

        Args:
            pattern: shell wildcards (`*`, `?`, `[ab]`) for a name or a title, in any case.

        Raises:
            FoveateError: no method has such a name or title.
        """
        from foveate.methods.entries import methods_named

        return methods_named(pattern)

    def __getattr__(self, name: str) -> Any:
        """Import a built-in class when it is first used."""
        if name.startswith("_") or name in {module.name for module in pkgutil.iter_modules(self.__path__)}:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        classes = _classes()
        if name in classes:
            setattr(self, name, classes[name])
            return classes[name]
        by_lower_case = {known.lower(): known for known in classes}
        close = [by_lower_case[match] for match in get_close_matches(name.lower(), by_lower_case, 3)]
        hint = f"did you mean {' or '.join(close)}?" if close else f"possible are {', '.join(sorted(classes))}."
        message = f"there is no method class {name!r} in {__name__}; {hint}"
        # `from foveate.methods import Name` replaces the message of an AttributeError by one without a hint. Before, it
        # asks for the name in `_handle_fromlist` of importlib, where an ImportError is passed on as it is.
        if sys._getframe(1).f_code.co_name == "_handle_fromlist":
            raise ImportError(message, name=__name__)
        raise AttributeError(message)

    def __dir__(self) -> list[str]:
        return sorted({name for name in vars(self) if name.startswith("__")} | set(_classes()))


def _classes() -> dict[str, type[Method]]:
    """Return the methods of this library by the names of their classes."""
    from foveate.core.registry import built_in_methods

    return {cls.__name__: cls for cls in built_in_methods().values()}


sys.modules[__name__].__class__ = _Package
