"""Reversible patches of a live model's modules: removed by `undo`, and excluded from copies of the model.

Patches are installed once, when something is attached, and stay until it is restored. State that differs between
calls belongs to the calling thread, so that threads can share a model.
"""

from __future__ import annotations

import copyreg
import functools
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from torch import nn

from foveate.core.errors import FoveateError

_NOTHING = object()
#: Where accelerate keeps the `forward` that its own one wraps.
_ACCELERATE_FORWARD = "_old_forward"

#: Attribute of a patched module that holds its `_Patched`.
_PATCHED = "_foveate_patched"

_lock = threading.RLock()
#: Number of patched modules by class; copies of these classes go through `_reduce`.
_classes: Counter[type] = Counter()


@dataclass(eq=False)
class _Attribute:
    """An attribute that is set on a module.

    Args:
        name: Its name.
        value: What it is set to.
        previous: What it was before; `_NOTHING` where the instance had none.
    """

    name: str
    value: Any
    previous: Any


@dataclass(eq=False)
class _Patched:
    """The patches of a module. They are an attribute of it, because a global table would keep it alive.

    Args:
        uncount: Takes the module out of `_classes`, once; also when the module is freed with its patches.
        cleaners: Functions that remove the patches from a copy of its attributes, in the order of the patches.
        attributes: The attributes that are set, in the order in which they were set.
    """

    uncount: Callable[[], Any]
    cleaners: tuple[Callable[[dict[str, Any]], None], ...] = ()
    attributes: tuple[_Attribute, ...] = ()


class Patches:
    """The patches of one handle; a context manager that removes them on exit."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def callback(self, undo: Callable[[], None]) -> None:
        """Call `undo` when the patches are removed."""
        self._undo.append(undo)

    def exclude_from_copies(self, module: nn.Module, clean: Callable[[dict[str, Any]], None]) -> None:
        """Let `clean` edit the attributes of every copy of a module, until the patches are removed."""
        with _lock:
            patched = _patches_of(module)
            patched.cleaners = (*patched.cleaners, clean)
        self._undo.append(functools.partial(_include_in_copies, module, clean))

    def set(self, module: nn.Module, name: str, value: Any, fallback: Any = None) -> None:
        """Set an attribute of an instance; it may shadow one of its class.

        Args:
            module: The instance.
            name: Name of the attribute.
            value: A new object; it is recognised by identity.
            fallback: The original value, for copies of a module whose `forward` accelerate has moved since.
        """
        attribute = _Attribute(name, value, vars(module).get(name, _NOTHING))

        def clean(state: dict[str, Any]) -> None:
            if state.get(_ACCELERATE_FORWARD) is value and fallback is not None:
                state[_ACCELERATE_FORWARD] = fallback
            if state.get(name) is not value:
                return
            if attribute.previous is _NOTHING:
                state.pop(name)
            else:
                state[name] = attribute.previous

        self.exclude_from_copies(module, clean)
        self._undo.append(functools.partial(_unset, module, attribute, clean))
        with _lock:
            patched = _patches_of(module)
            patched.attributes = (*patched.attributes, attribute)
            vars(module)[name] = value

    def wrap(self, module: nn.Module, name: str, wrapper: Callable[..., Any]) -> None:
        """Replace a method of an instance by `around(original, *args, **kwargs)`."""
        original = getattr(module, name)
        active = True

        @functools.wraps(original)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            # A caller may still hold this function after the patch was removed.
            return wrapper(original, *args, **kwargs) if active else original(*args, **kwargs)

        def deactivate() -> None:
            nonlocal active
            active = False

        self._undo.append(deactivate)
        self.set(module, name, wrapped, fallback=original)

    def before(self, module: nn.Module, hook: Callable[..., Any], **options: Any) -> None:
        """Call `hook` before every forward of a module, see `register_forward_pre_hook`."""
        if options.get("with_kwargs"):
            hook = _with_all_arguments(hook, 3)
        self._hook(module, module.register_forward_pre_hook(hook, **options))

    def after(self, module: nn.Module, hook: Callable[..., Any], **options: Any) -> None:
        """Call `hook` after every forward of a module, see `register_forward_hook`."""
        if options.get("with_kwargs"):
            hook = _with_all_arguments(hook, 4)
        self._hook(module, module.register_forward_hook(hook, **options))

    def _hook(self, module: nn.Module, handle: Any) -> None:
        def clean(state: dict[str, Any]) -> None:
            for name, hooks in state.items():
                if "_hooks" in name and isinstance(hooks, dict) and handle.id in hooks:
                    state[name] = type(hooks)((key, hook) for key, hook in hooks.items() if key != handle.id)

        self._undo.append(handle.remove)
        self.exclude_from_copies(module, clean)

    def undo(self) -> None:
        """Remove the patches, the last one first; a second call changes nothing."""
        while self._undo:
            self._undo.pop()()

    def __enter__(self) -> Patches:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.undo()


class NotCopyable:
    """Base class of handles: bound to one live model, so they cannot be copied or pickled."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise FoveateError(f"{self!r} belongs to one live model and cannot be copied or saved; restore it first.")


def in_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a hook so that it runs in the current thread only."""
    thread = threading.get_ident()

    @functools.wraps(hook)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return hook(*args, **kwargs) if threading.get_ident() == thread else None

    return wrapped


def _with_all_arguments(hook: Callable[..., Any], count: int) -> Callable[..., Any]:
    """Wrap a hook that takes keyword arguments so that it passes over calls without them.

    torch adds a hook first and notes then that it takes them (and removes it in this order), so that a pass of another
    thread in between calls it without them. That pass began before the hook was there, and stays as it is.
    """

    @functools.wraps(hook)
    def wrapped(*arguments: Any) -> Any:
        return hook(*arguments) if len(arguments) == count else None

    return wrapped


# Copies of modules


def _count_patched(cls: type, change: int) -> None:
    """Count patched modules of a class, and copy its instances with `_reduce` while there are any."""
    with _lock:
        _classes[cls] += change
        if _classes[cls] > 0:
            copyreg.dispatch_table.setdefault(cls, _reduce)
        elif copyreg.dispatch_table.get(cls) is _reduce:
            del copyreg.dispatch_table[cls]


def _patches_of(module: nn.Module) -> _Patched:
    """The patches of a module, which are created if it has none."""
    patched = vars(module).get(_PATCHED)
    if patched is None:
        cls = type(module)
        _count_patched(cls, 1)
        uncount = weakref.finalize(module, _count_patched, cls, -1)
        uncount.atexit = False
        patched = vars(module)[_PATCHED] = _Patched(uncount)
    return patched


def _unset(module: nn.Module, attribute: _Attribute, clean: Callable[[dict[str, Any]], None]) -> None:
    """Remove an attribute from a module.

    Handles may be restored in any order: what was set after this one goes back to what was there before it.
    """
    with _lock:
        clean(vars(module))
        patched = _patches_of(module)
        patched.attributes = tuple(other for other in patched.attributes if other is not attribute)
        for other in patched.attributes:
            if other.name == attribute.name and other.previous is attribute.value:
                other.previous = attribute.previous


def _include_in_copies(module: nn.Module, clean: Callable[[dict[str, Any]], None]) -> None:
    with _lock:
        patched: _Patched = vars(module)[_PATCHED]
        patched.cleaners = tuple(other for other in patched.cleaners if other is not clean)
        if not patched.cleaners:
            del vars(module)[_PATCHED]
            patched.uncount()


def _reduce(module: nn.Module) -> Any:
    """`__reduce_ex__` of a module without its patches, for `copy` and `pickle`."""
    patched: _Patched | None = vars(module).get(_PATCHED)
    if patched is None:
        return module.__reduce_ex__(4)
    cleaners = patched.cleaners
    state = dict(vars(module))
    del state[_PATCHED]
    for clean in reversed(cleaners):
        clean(state)
    copy_ = object.__new__(type(module))
    vars(copy_).update(state)
    constructor, arguments, attributes, *rest = copy_.__reduce_ex__(4)
    return constructor, arguments, _State(attributes, type(module).__name__), *rest


class _State:
    """Attributes of a patched module for `deepcopy` and `pickle`, which copy its submodules too.

    A shallow copy would share submodules with a model that has something attached: it is refused.
    """

    def __init__(self, attributes: Any, name: str) -> None:
        self._attributes, self._name = attributes, name

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return deepcopy(self._attributes, memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return dict, (), None, None, iter(self._attributes.items())

    def keys(self) -> Any:
        """Refuse shallow copies, which read the attributes through this method."""
        raise FoveateError(
            f"a shallow copy of this {self._name} would share its submodules with a model that foveate is attached to; "
            "restore that first, or use copy.deepcopy, whose copy has nothing attached."
        )
