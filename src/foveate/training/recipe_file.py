"""Read recipes from YAML files, with limits, and check every key against the classes of `foveate.training.recipe`.

Relative paths in a recipe are relative to its own folder (data and models) or to the current folder (output). An
unknown key is an error that names the keys that exist.

A recipe may extend another one in the same folder, which extends none: `extends: mlp.yaml`. Its keys then replace those
of the other one, keys inside of keys too; lists are replaced as a whole, except that `stages: {NAME: {...}}` changes
stages by name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import reprlib
import types
import typing
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from foveate.core.errors import FoveateError
from foveate.core.text_files import decoded
from foveate.training.recipe import Data, Recipe

#: The key with the file that a recipe extends.
EXTENDS = "extends"
#: Limits on bytes, values and levels of a recipe file: far above any real one, far below a malicious one.
MOST_BYTES, MOST_VALUES, DEEPEST = 2**18, 20_000, 32


def read_recipe(path: str | Path) -> Recipe:
    """Read and check the recipe file `path`.

    Raises:
        FoveateError: the file cannot be read, is not YAML, or has a key or value that is not possible; the message
            names the file and the place in it.
    """
    if find_spec("yaml") is None:
        raise FoveateError("Recipes need PyYAML; install it with `pip install foveate[train]`.")
    path = Path(path)
    content = _content(path)
    if isinstance(content, dict) and EXTENDS in content:
        name = content.pop(EXTENDS)
        base = _content(_extended(path, name))
        if isinstance(base, dict) and EXTENDS in base:
            raise FoveateError(f"{path}: {EXTENDS}: {name} extends another recipe itself, which is one too many.")
        try:
            content = _merged(base, content)
        except FoveateError as error:
            raise FoveateError(f"{path}: {error}") from error
    try:
        recipe = parse_recipe(content)
    except FoveateError as error:
        raise FoveateError(f"{path}: {error}") from error
    try:
        return _with_paths_from(recipe, path.parent)
    except FoveateError as error:
        raise FoveateError(f"{path}: {error}") from error


def _content(path: Path) -> Any:
    """Read the YAML document of a recipe file; see `read_recipe`."""
    import yaml

    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        text = decoded(data)
    except (OSError, ValueError) as error:
        raise FoveateError(f"The recipe {path} cannot be read: {error}.") from error
    if len(data) > MOST_BYTES:
        raise FoveateError(f"The recipe {path} is longer than the {MOST_BYTES >> 10} KiB that a recipe may have.")
    try:
        if _brackets(text) > DEEPEST:  # PyYAML takes quadratic time in the depth
            raise RecursionError
        content = yaml.load(text, _loader())
        _check_extent(content)
    except FoveateError as error:
        raise FoveateError(f"{path}: {error}") from error
    except RecursionError:
        raise FoveateError(f"The recipe {path} is nested more than {DEEPEST} levels deep.") from None
    except Exception as error:  # PyYAML's constructors raise others too: a 13th month is a bare ValueError
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        raise FoveateError(f"The recipe {path} is not valid YAML: {reason}.") from error
    return content


def _loader() -> Any:
    """PyYAML's safe loader, refusing a key that is written twice, of which PyYAML takes the last one."""
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            lines: dict[Any, int] = {}
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode) or key.tag.endswith(":merge"):
                    continue
                line = key.start_mark.line + 1
                if (key.tag, key.value) in lines:
                    raise FoveateError(
                        f"the key {reprlib.repr(key.value)} is written twice, in line {lines[key.tag, key.value]} and "
                        f"in line {line}; leave one of them out."
                    )
                lines[key.tag, key.value] = line
            return node

    return Loader


def _extended(path: Path, name: Any) -> Path:
    """The file that the recipe `path` extends.

    Raises:
        FoveateError: the name is none of another file in its folder.
    """
    if not isinstance(name, str) or Path(name).name != name or name in ("", path.name):
        raise FoveateError(
            f"{path}: {EXTENDS} must name another recipe in the same folder, such as mlp.yaml, not "
            f"{reprlib.repr(name)}."
        )
    return path.with_name(name)


def _merged(base: Any, changes: Any) -> Any:
    """A document with the keys of another one replaced, at every level; entries of lists are replaced by name."""
    if isinstance(base, list) and isinstance(changes, dict):
        names = [entry.get("name") if isinstance(entry, dict) else None for entry in base]
        if unknown := [name for name in changes if name not in names]:
            raise FoveateError(
                f"the recipe that it extends has no {reprlib.repr(unknown[0])} to change; possible are "
                f"{', '.join(str(name) for name in names)}."
            )
        return [
            _merged(entry, changes[name]) if isinstance(name, str) and name in changes else entry
            for name, entry in zip(names, base, strict=True)
        ]
    if not isinstance(base, dict) or not isinstance(changes, dict):
        return changes
    return base | {key: _merged(base.get(key), value) for key, value in changes.items()}


def parse_recipe(content: Any) -> Recipe:
    """Build the recipe of a parsed YAML document.

    Raises:
        FoveateError: a key or value is not possible; the message starts with its place, such as `stages[1].loss`.
    """
    return _read(Recipe, content, "recipe")


def read_settings(kind: Any, values: Any, where: str) -> Any:
    """Build a dataclass of settings from plain values, each of which must have the type of its field.

    Args:
        kind: The dataclass.
        values: By field.
        where: What messages begin with.

    Raises:
        FoveateError: a field does not exist, or a value has another type or is not possible.
    """
    return _read(kind, values, where)


def _brackets(text: str) -> int:
    """Greatest nesting of brackets, those in strings and comments included."""
    depth = deepest = 0
    for char in text:
        if char in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif char in "]}":
            depth = max(0, depth - 1)
    return deepest


def _check_extent(content: Any) -> None:
    """Refuse documents that anchors and aliases expand too far, or that contain themselves."""
    level, values = [content], 0
    for _ in range(DEEPEST):
        nested = [
            value.values() if isinstance(value, dict) else value for value in level if isinstance(value, (dict, list))
        ]
        values += sum(map(len, nested))
        if values > MOST_VALUES:
            raise FoveateError(f"recipe: it holds more than {MOST_VALUES:,} values, aliases counted as often as used.")
        level = [inner for value in nested for inner in value]
        if not level:
            return
    raise RecursionError


def _with_paths_from(recipe: Recipe, folder: Path) -> Recipe:
    """Resolve the data paths and the folders of models of a recipe relative to `folder`.

    Raises:
        FoveateError: A model is a folder of the current folder, and not of the recipe's.
    """

    def relocated(data: Data) -> Data:
        if data.files is None:
            return data
        named = {key: getattr(data.files, key) for key in ("path", "images", "videos")}
        paths = {key: None if name is None else str(folder / name) for key, name in named.items()}
        return dataclasses.replace(data, files=dataclasses.replace(data.files, **paths))

    stages = [
        dataclasses.replace(
            stage,
            data=[relocated(data) for data in stage.data],
            teacher=_model_from(stage.teacher, folder, f"stages.{stage.name}.teacher"),
        )
        for stage in recipe.stages
    ]
    model, new = recipe.model, recipe.model.new
    if new is not None:
        named = {key: getattr(new, key) for key in ("tokenizer", "language_model", "vision_tower")}
        new = dataclasses.replace(
            new, **{key: _model_from(name, folder, f"model.new.{key}") for key, name in named.items()}
        )
    model = dataclasses.replace(model, pretrained=_model_from(model.pretrained, folder, "model.from"), new=new)
    return dataclasses.replace(recipe, model=model, stages=stages)


def _model_from(name: str | None, folder: Path, key: str) -> str | None:
    """A Hub id as it is, or a folder relative to that of the recipe.

    Raises:
        FoveateError: see `_with_paths_from`.
    """
    if name is None or Path(name).is_absolute():
        return name
    if name.startswith(".") or (folder / name).is_dir():
        return str(folder / name)
    if Path(name).is_dir():
        raise FoveateError(
            f"{key}: {name!r} is in the current folder, and paths in a recipe are relative to the recipe: write "
            "one from its folder, or the whole path."
        )
    return name


def _read(kind: Any, value: Any, where: str) -> Any:
    """Convert `value` to the annotated type `kind`, or raise a FoveateError that starts with `where`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _read(next(a for a in arguments if a is not type(None)), value, where)
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, value, where)
    if origin is Literal:
        if not any(value == known and type(value) is type(known) for known in arguments):  # 1 is not True
            raise FoveateError(
                f"{where}: {reprlib.repr(value)} is not possible; possible are {', '.join(map(str, arguments))}."
            )
        return value
    if origin is tuple:
        any_length = arguments[1:] == (...,)
        if not isinstance(value, list) or (len(value) != len(arguments) and not any_length):
            count = "" if any_length else f" of {len(arguments)} values"
            raise FoveateError(f"{where}: expected a list{count}, found {reprlib.repr(value)}.")
        if any_length:
            arguments = arguments[:1] * len(value)
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
    if renamed := [f"{key} is now {new}" for key, new in getattr(kind, "renamed", {}).items() if key in value]:
        raise FoveateError(f"{where}: {', '.join(renamed)}; rename {'it' if len(renamed) == 1 else 'them'}.")
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
    valid = isinstance(value, (int, float) if kind is float else kind)
    if isinstance(value, bool) and kind is not bool:
        valid = False
    if not valid and kind is float and isinstance(value, str):
        # YAML 1.1 reads 1e-3 as a string.
        with contextlib.suppress(ValueError):
            value, valid = float(value), True
    if valid and kind in (int, float) and not abs(value) < 2**63:  # written so that NaN fails
        valid = False
    if not valid:
        raise FoveateError(f"{where}: expected {names[kind]}, found {reprlib.repr(value)}.")
    return float(value) if kind is float else value
