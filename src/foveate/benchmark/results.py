"""Result files: atomic writes, and reading for resumed runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foveate.core import files
from foveate.core.errors import FoveateError
from foveate.core.full_model import FULL_MODEL
from foveate.core.plan import Plan, current_names
from foveate.core.text_files import read_text

#: Keys of results whose names have changed, old to new.
_RENAMED_KEYS = {
    "untouched": "full_model",
    "times_untouched": "times_full_model",
    "untouched_seconds": "full_model_seconds",
    "loyalty": "agreement",
    "view": "preprocess",
}
#: Words of notes that have changed, old to new.
_REWORDED = {"untouched model": FULL_MODEL, "without the view": "without preprocessing", "Loyalty": "Agreement"}

#: Note on the token count of a plan that kept every token.
INERT = "nothing left out"


def inert(row: Mapping[str, Any]) -> bool:
    """Whether the plan of an accuracy or speed row kept every token, as far as the row tells.

    Rows that were written before `tokens_mean` was do not tell of plans inside the language model.
    """
    every = row.get("tokens_in")
    if row["plan"] == FULL_MODEL or every is None:
        return False
    worked = next((row[name] for name in ("tokens_kept", "tokens_mean") if row.get(name) is not None), None)
    if worked is None and "tokens" in row:
        try:
            if not Plan.of(row["plan"]).decoder_steps:
                worked = row["tokens"]
        except FoveateError:  # a plan of another version
            return False
    return worked is not None and worked >= every


def read_results(path: Path) -> Any:
    """Read the JSON document of a result file, with current names of methods and keys.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON.
    """
    return parse_result(read_text(path))


def parse_result(text: str) -> Any:
    """Parse the JSON of a result or of one of its lines, with current names of methods and keys.

    Raises:
        ValueError: it is no JSON.
    """
    return _renamed(json.loads(current_names(text)))


def _renamed(value: Any, plan_keys: bool = False) -> Any:
    """Replace old names in a JSON value; `plan_keys`: keys of this object are plans."""
    if isinstance(value, dict):
        names = {"untouched": FULL_MODEL} if plan_keys else _RENAMED_KEYS
        return {names.get(key, key): _renamed(item, plan_keys=key == "measured") for key, item in value.items()}
    if isinstance(value, list):
        return [_renamed(item) for item in value]
    if not isinstance(value, str):
        return value
    for before, now in _REWORDED.items():
        value = value.replace(before, now)
    return FULL_MODEL if value == "untouched" else value


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a document atomically: readers see the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, document, indent=1)


def earlier(
    path: Path,
    described: dict[str, Any],
    parts: Sequence[str],
    kind: str | None = None,
    hardware: Mapping[str, Any] | None = None,
) -> list[list[Any]]:
    """Return the lists `parts` of an earlier result; empty lists if there is none.

    Args:
        path: The file.
        described: The settings, which must be those of the file.
        parts: Such as "rows".
        kind: Expected "kind" of the file; None if results of this benchmark have none.
        hardware: `profiling.hardware`, where the file has times: those of two processors do not go into one table.

    Raises:
        FoveateError: it is no such result, or was measured with other settings or on another processor.
    """
    if not path.exists():
        return [[] for _ in parts]
    try:
        document = read_results(path)
        file_kind, settings = document.get("kind"), document["settings"]
        lists = [document[part] for part in parts]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FoveateError(f"{path} is not a result of this benchmark, so it cannot be resumed.") from error
    if kind is not None and file_kind != kind:
        raise FoveateError(f"{path} is not a result of `foveate bench {kind}`, so it cannot be resumed.")
    described = json.loads(json.dumps(described))  # as the file has them: lists in place of tuples
    if settings != described:
        different = sorted(key for key in {*described, *settings} if settings.get(key) != described.get(key))
        raise FoveateError(f"{path} was measured with other settings ({', '.join(different)}); choose another file.")
    if hardware is None or not (before := document.get("hardware")):  # not in old files
        return lists
    for part in ("cpu", "gpu"):
        there, here = before.get(part, "none"), hardware.get(part, "none")
        if there != here:
            raise FoveateError(
                f"{path} was measured on another {part.upper()} ({there}, here {here}); choose another file."
            )
    return lists
