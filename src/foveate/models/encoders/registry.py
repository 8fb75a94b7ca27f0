"""Registry of encoders by name, which is the `model_type` of their configuration.

The encoders of this library are the packages and modules of this package. Other packages add theirs with
`register_encoder` in a module that is imported before a model is built; `foveate --import` and `FOVEATE_IMPORT` name
such modules.
"""

from __future__ import annotations

import importlib
import inspect
from functools import cache
from typing import Any, TypeVar

from transformers import AutoConfig, AutoModel

from foveate.core.class_registry import NAME, ClassRegistry, by_name, check_subclass, subclasses_in
from foveate.core.errors import FoveateError
from foveate.core.registry import import_named
from foveate.models.encoders.configuration import EncoderConfig
from foveate.models.encoders.encoder import Encoder

PACKAGE = "foveate.models.encoders"

E = TypeVar("E", bound=type[Encoder])


def all_encoders() -> dict[str, type[Encoder]]:
    """Every encoder by name, in alphabetical order."""
    import_named()
    return _encoders.all()


def encoder_named(name: str) -> type[Encoder]:
    """The encoder of a `model_type`.

    Raises:
        FoveateError: There is none; the message names those that exist.
    """
    import_named()
    return _encoders.named(name)


def register_encoder(cls: E) -> E:
    """Make an encoder known by its name, also to `AutoConfig` and `AutoModel`. Also a class decorator.

    Raises:
        FoveateError: It is no encoder, lacks a part, or its name is taken.
    """
    check_subclass("encoder", cls, Encoder, PACKAGE)
    config_class = cls.config_class
    if not isinstance(config_class, type) or not issubclass(config_class, EncoderConfig):
        raise FoveateError(f"{cls.__qualname__} needs a config_class that derives from EncoderConfig.")
    name = config_class.model_type
    if not NAME.fullmatch(name) or not isinstance(getattr(cls, "title", None), str):
        raise FoveateError(
            f"{cls.__qualname__} needs a title, and a model_type of lower-case letters, digits, - and _, not {name!r}."
        )
    _encoders.add(cls)
    _register_auto(cls)
    return cls


def unregister_encoder(name: str) -> None:
    """Remove an encoder that `register_encoder` added; the Auto classes of `transformers` still know it.

    Raises:
        FoveateError: There is no such encoder.
    """
    _encoders.remove(name)


def register() -> None:
    """Make `AutoConfig` and `AutoModel` know the encoders of this library. Doing it twice changes nothing."""
    for cls in _built_in().values():
        _register_auto(cls)


def _register_auto(cls: type[Encoder]) -> None:
    config_class: Any = cls.config_class
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    AutoModel.register(config_class, cls, exist_ok=True)


@cache
def _built_in() -> dict[str, type[Encoder]]:
    path = importlib.import_module(PACKAGE).__path__
    classes = (cls for cls in subclasses_in(PACKAGE, path, Encoder) if not inspect.isabstract(cls))
    return by_name("encoder", classes, _name_of)


def _name_of(cls: Any) -> str:
    return cls.config_class.model_type


_encoders: ClassRegistry[type[Encoder]] = ClassRegistry("encoder", _built_in, _name_of)
