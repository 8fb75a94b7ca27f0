"""Recipes as YAML files: read with limits, and checked key by key against the classes of `foveate.training.recipe`.

Relative paths in a recipe are relative to its own folder (data) or to the current folder (output). An unknown key is an
error that names the keys that exist.
"""

from __future__ import annotations

import contextlib
import dataclasses
import reprlib
import types
import typing
from pathlib import Path
from typing import Any, Literal

from foveate.core.errors import FoveateError
from foveate.core.text_files import decoded
from foveate.training.recipe import Data, Files, Recipe

#: Bytes, values and levels of a recipe file: far above any that somebody writes, far below what a trap holds.
MOST_BYTES, MOST_VALUES, DEEPEST = 2**18, 20_000, 32


def read_recipe(path: str | Path) -> Recipe:
    """Reads and checks the recipe file `path`.

    Raises:
        FoveateError: the file cannot be read, is not YAML, or has a key or value that is not possible; the message
            names the file and the place in it.
    """
    try:
        import yaml
    except ImportError as error:
        raise FoveateError("Recipes need PyYAML; install it with `pip install foveate[train]`.") from error
    path = Path(path)
    try:
        with path.open("rb") as file:
            written = file.read(MOST_BYTES + 1)
        text = decoded(written)
    except (OSError, ValueError) as error:
        raise FoveateError(f"The recipe {path} cannot be read: {error}.") from error
    if len(written) > MOST_BYTES:
        raise FoveateError(f"The recipe {path} is longer than the {MOST_BYTES >> 10} KiB that a recipe may have.")
    try:
        if _brackets(text) > DEEPEST:  # before PyYAML, whose time grows with the square of the depth
            raise RecursionError
        content = yaml.safe_load(text)
        _check_extent(content)
    except FoveateError as error:
        raise FoveateError(f"{path}: {error}") from error
    except RecursionError:
        raise FoveateError(f"The recipe {path} is nested more than {DEEPEST} levels deep.") from None
    except Exception as error:  # PyYAML's own, and what its constructors raise: a 13th month is a bare ValueError
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        raise FoveateError(f"The recipe {path} is not valid YAML: {reason}.") from error
    try:
        recipe = parse_recipe(content)
    except FoveateError as error:
        raise FoveateError(f"{path}: {error}") from error
    return _with_paths_from(recipe, path.parent)


def parse_recipe(content: Any) -> Recipe:
    """The recipe of an already parsed YAML document.

    Raises:
        FoveateError: a key or value is not possible; the message starts with its place, such as `stages[1].loss`.
    """
    return _read(Recipe, content, "recipe")


def _brackets(text: str) -> int:
    """How deep brackets stand in one another at most, those in texts and comments counted too."""
    depth = deepest = 0
    for char in text:
        if char in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif char in "]}":
            depth = max(0, depth - 1)
    return deepest


def _check_extent(content: Any) -> None:
    """Refuse what a few lines of anchors and aliases blow up to; a document that holds itself is without end."""
    level, values = [content], 0
    for _ in range(DEEPEST):
        nested = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, (dict, list))]
        values += sum(map(len, nested))
        if values > MOST_VALUES:
            raise FoveateError(f"recipe: it holds more than {MOST_VALUES:,} values, aliases counted as often as used.")
        level = [inner for one in nested for inner in one]
        if not level:
            return
    raise RecursionError


def _with_paths_from(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with its data paths made relative to `folder` instead of to the recipe's file."""

    def moved(data: Data) -> Data:
        if data.files is None:
            return data
        images = None if data.files.images is None else str(folder / data.files.images)
        return dataclasses.replace(data, files=Files(str(folder / data.files.path), images))

    stages = [dataclasses.replace(stage, data=[moved(data) for data in stage.data]) for stage in recipe.stages]
    return dataclasses.replace(recipe, stages=stages)


def _read(kind: Any, value: Any, where: str) -> Any:
    """`value` of the YAML document as the annotated type `kind`, or a FoveateError that starts with `where`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _read(next(a for a in arguments if a is not type(None)), value, where)
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, value, where)
    if origin is Literal:
        if value not in arguments:
            raise FoveateError(
                f"{where}: {reprlib.repr(value)} is not possible; possible are {', '.join(map(str, arguments))}."
            )
        return value
    if origin is tuple:
        if not isinstance(value, list) or len(value) != len(arguments):
            raise FoveateError(f"{where}: expected a list of {len(arguments)} values, found {reprlib.repr(value)}.")
        return tuple(_read(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(arguments, value, strict=True)))
    if origin is list:
        if not isinstance(value, list):
            raise FoveateError(f"{where}: expected a list, found {reprlib.repr(value)}.")
        return [_read(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict):
            raise FoveateError(f"{where}: expected keys with values, found {reprlib.repr(value)}.")
        return {_read(arguments[0], k, where): _read(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    return _read_scalar(kind, value, where)


def _read_dataclass(kind: Any, value: Any, where: str) -> Any:
    fields = {f.metadata.get("key", f.name): f for f in dataclasses.fields(kind)}
    if not isinstance(value, dict):
        raise FoveateError(
            f"{where}: expected keys with values, found {reprlib.repr(value)}; possible keys are {', '.join(fields)}."
        )
    unknown = [str(key)[:80] for key in value if key not in fields]
    if unknown:
        named = f"key{'s' * (len(unknown) > 1)} {', '.join(unknown[:10])}"
        raise FoveateError(f"{where}: unknown {named}; possible are {', '.join(fields)}.")
    for key, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and key not in value:
            raise FoveateError(f"{where}: the key {key} is missing.")
    hints = typing.get_type_hints(kind)
    result = kind(**{fields[k].name: _read(hints[fields[k].name], v, f"{where}.{k}") for k, v in value.items()})
    if hasattr(result, "check"):
        result.check(where)
    return result


def _read_scalar(kind: Any, value: Any, where: str) -> Any:
    if kind is Any:
        return value
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    right = isinstance(value, (int, float) if kind is float else kind)
    if isinstance(value, bool) and kind is not bool:
        right = False
    if not right and kind is float and isinstance(value, str):
        # YAML 1.1 reads 1e-3 as a text; everybody means the number.
        with contextlib.suppress(ValueError):
            value, right = float(value), True
    if right and kind in (int, float) and not abs(value) < 2**63:  # written so that NaN fails
        right = False
    if not right:
        raise FoveateError(f"{where}: expected {names[kind]}, found {reprlib.repr(value)}.")
    return float(value) if kind is float else value
