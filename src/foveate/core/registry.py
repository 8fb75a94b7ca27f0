"""Registry of methods by name: built in, from installed packages, and registered by a program.

The methods of this library are those in the package of their site. A method of another package is named by an entry
point of the group `foveate.methods`, or registered by `register_method` where its module is imported; programs with
several processes name such modules in `FOVEATE_IMPORT`, as `foveate --import` does.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import re
import sys
import warnings
from collections.abc import Iterable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, TypeVar, get_args

from foveate.core.class_registry import ClassRegistry, by_name, subclasses_in
from foveate.core.errors import FoveateError
from foveate.core.method import Mechanism, Method, Modality, Site
from foveate.core.plugin_names import GROUP, IMPORTS

#: Packages of the methods of this library, by site. They are imported when a method is first looked up.
PACKAGES = {
    Site.ACQUISITION: ("foveate.methods.acquisition",),
    Site.FRAMES: ("foveate.methods.frames",),
    Site.IMAGE: ("foveate.methods.image",),
    Site.ENCODER: ("foveate.methods.encoder",),
    Site.CONNECTOR: ("foveate.methods.connector",),
    Site.PRE_LLM: ("foveate.methods.pre_llm", "foveate.methods.video"),
    Site.DECODER: ("foveate.methods.decoder",),
}
#: Methods that were called otherwise before: plans and results with the old names stay readable.
RENAMED = {f"{name}-at": f"{name}-decoder" for name in ("dart", "pool", "ppe", "random", "todre", "vflowopt")}

# A plus after a letter, as in prumerge+, is part of a name; after anything else it joins the steps of a plan.
_NAME = re.compile(r"[a-z][a-z0-9_-]*|[a-z]([a-z0-9_-]*[a-z])?\+")
M = TypeVar("M", bound=type[Method])

_broken: dict[str, str] = {}


def all_methods() -> dict[str, type[Method]]:
    """Every method that a plan can name, in alphabetical order.

    Raises:
        FoveateError: a file or module that `FOVEATE_IMPORT` names cannot be imported.
    """
    _load_installed()
    import_named()
    return _methods.all()


def model_methods() -> dict[str, type[Method]]:
    """The methods that `compress` attaches to a model, in alphabetical order.

    Not those that choose frames, and not those for which a model is called twice.
    """
    return {name: cls for name, cls in all_methods().items() if cls.site not in (Site.FRAMES, Site.ACQUISITION)}


def methods_at(site: Site) -> dict[str, type[Method]]:
    """The methods of one site by name, in alphabetical order."""
    return {name: cls for name, cls in all_methods().items() if cls.site is site}


def why_missing(name: str) -> str | None:
    """Why an installed package's method of this name is not there, None where no package offers one."""
    return _broken.get(name)


def register_method(cls: M) -> M:
    """Make a method known by its name, wherever names of methods are read. Also a class decorator.

        @foveate.register_method
        @dataclass(frozen=True)
        class Mine(PreLLMMethod): ...

    Registering a class again, as a notebook does when a cell is run twice, replaces it.

    Raises:
        FoveateError: it is no method, lacks a part, or its name is taken.
    """
    check_method(cls)
    _methods.add(cls)
    return cls


def unregister_method(name: str) -> None:
    """Forget a method that `register_method` made known.

    Raises:
        FoveateError: there is no such method.
    """
    _methods.remove(name)


def import_methods(target: str) -> None:
    """Import a file (`my_method.py`) or a module (`package.module`) that registers methods; twice is once.

    Raises:
        FoveateError: there is no such file or module, or it cannot be imported.
    """
    path = Path(target)
    try:
        if path.suffix == ".py" or os.sep in target:
            _import_file(path)
        else:
            importlib.import_module(target)
    except FoveateError as error:
        raise FoveateError(f"{target} cannot be imported: {error}") from error
    except (Exception, SystemExit) as error:  # the second: a script that runs as a whole
        what = f"{type(error).__name__}: {error}".rstrip(".")
        raise FoveateError(f"{target} cannot be imported: {what}.") from error


def import_named() -> None:
    """Import what `FOVEATE_IMPORT` names.

    Raises:
        FoveateError: a file or module is not there, or cannot be imported.
    """
    for target in filter(None, os.environ.get(IMPORTS, "").split(os.pathsep)):
        _import_once(target)


@cache
def _import_once(target: str) -> None:
    import_methods(target)


def _import_file(path: Path) -> None:
    if not path.is_file():
        raise FoveateError("there is no such file.")
    path = path.resolve()
    for module in list(sys.modules.values()):
        if getattr(module, "__file__", None) == str(path):
            return
    name = path.stem
    if name in sys.modules or not name.isidentifier():
        name = f"_foveate_{re.sub(r'[^0-9a-zA-Z_]', '_', name)}_{len(sys.modules)}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise FoveateError("it is no Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


@cache
def built_in_methods() -> dict[str, type[Method]]:
    """The methods of this library by name. Other packages are not loaded, so that they can ask for it meanwhile."""
    methods: dict[str, type[Method]] = {}
    for site, package in ((site, package) for site, packages in PACKAGES.items() for package in packages):
        base: Any = importlib.import_module(package)
        for name, cls in registered(Method, package, base.__path__).items():
            if name in methods or cls.site is not site:
                raise TypeError(f"{cls} lies in {package}: its site is {cls.site}, and its name {name!r}.")
            methods[name] = cls
    return methods


def _name_of(cls: Any) -> str:
    return cls.name


_methods: ClassRegistry[type[Method]] = ClassRegistry("method", built_in_methods, _name_of)


@cache
def _load_installed() -> None:
    """Load what installed packages offer, once. One that is broken takes nothing but its own methods away."""
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        try:
            loaded = point.load()
            if not inspect.ismodule(loaded):  # a module registers its methods itself
                register_method(loaded)
        except Exception as error:
            _broken[point.name] = f"{_offer(point)} cannot be used: {' '.join(str(error).split()).rstrip('.')}."
            warnings.warn(_broken[point.name], RuntimeWarning, stacklevel=2)


def _offer(point: EntryPoint) -> str:
    package = point.dist.name if point.dist is not None else "a package"
    return f"the method {point.name!r}, which {package} offers as {point.value},"


def registered(base: type, package: str, path: Iterable[str]) -> dict[str, Any]:
    """All methods of a package of this library by name, in alphabetical order.

    Args:
        base: The class that they derive from, however deep.
        package: Its name.
        path: Its `__path__`.

    Raises:
        TypeError: two methods have one name, or one does not say its mechanism and modality.
    """
    classes = (cls for cls in subclasses_in(package, path, base) if "name" in vars(cls))
    methods = by_name("method", classes, _name_of)
    for cls in methods.values():
        if wrong := _unsaid(cls):
            raise TypeError(wrong)
    return methods


def _unsaid(cls: Any) -> str | None:
    """What a method does not say of itself."""
    for attribute, possible in (("mechanism", get_args(Mechanism)), ("modality", get_args(Modality))):
        values = getattr(cls, attribute, ())
        if not values or not set(values) <= set(possible):
            return f"{cls.name} must say its {attribute}: some of {', '.join(possible)}, not {values!r}"
    return None


def check_method(cls: Any) -> None:
    """Refuse what cannot be registered.

    Raises:
        FoveateError: it is no method, or lacks a part.
    """
    if not isinstance(cls, type) or not issubclass(cls, Method):
        raise FoveateError(
            f"{cls!r} is no method; derive a class from PreLLMMethod, DecoderMethod, EncoderMethod, ConnectorMethod, "
            "ImageMethod or FrameSampler."
        )
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in RENAMED:
        raise FoveateError(
            f"{cls.__qualname__} needs a name of lower-case letters, digits, - and _, such as my-method, not {name!r}."
        )
    if getattr(cls, "site", None) not in PACKAGES:
        raise FoveateError(
            f"{name} acts at no site of a plan; derive it from PreLLMMethod, DecoderMethod, EncoderMethod, "
            "ConnectorMethod, ImageMethod or FrameSampler."
        )
    if inspect.isabstract(cls):
        raise FoveateError(f"{name} lacks {', '.join(sorted(cls.__abstractmethods__))}.")
    if "__dataclass_params__" not in vars(cls) or not cls.__dataclass_params__.frozen:
        raise FoveateError(f"{name} is no frozen dataclass: write @dataclass(frozen=True) above class {cls.__name__}.")
    if not isinstance(getattr(cls, "title", None), str):
        raise FoveateError(f"{name} needs a title, such as that of its paper.")
    if wrong := _unsaid(cls):
        raise FoveateError(f"{wrong}.")
