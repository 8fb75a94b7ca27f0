"""Model families: one adapter per file."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Any

from foveate.core.errors import FoveateError, Refusal
from foveate.families.family import Family, ImageLayout

__all__ = ["Family", "ImageLayout", "families", "family_of"]


@cache
def families() -> dict[str, Family]:
    """All families by name, in alphabetical order."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    classes: list[type[Family]] = []
    pending = list(Family.__subclasses__())
    while pending:
        cls = pending.pop()
        pending += cls.__subclasses__()
        if "name" in vars(cls):
            classes.append(cls)
    return {cls.name: cls() for cls in sorted(classes, key=lambda cls: cls.name)}


def family_of(model: Any) -> Family:
    """The family of a `transformers` model, with or without an output layer or task head.

    Raises:
        FoveateError: the model is of no known family.
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    kinds = (kind, getattr(getattr(getattr(model, "vlm", None), "config", None), "model_type", None))
    for family in families().values():
        if any(one in family.model_types for one in kinds):
            return family
    possible = ", ".join(sorted(t for family in families().values() for t in family.model_types))
    raise FoveateError(
        Refusal(
            "needs-known-family",
            f"{type(model).__name__} (model type {kind!r}) is of no family that foveate can compress",
            f"model types that it can: {possible}",
        )
    )
