"""Files of results: written in one step, and read again by a run that goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foveate.core import files
from foveate.core.errors import FoveateError
from foveate.core.plan import Plan, current_names
from foveate.core.text_files import read_text

#: What stands behind the tokens of a plan that left out none.
INERT = "nothing left out"


def inert(row: Mapping[str, Any]) -> bool:
    """Whether the plan of a row of accuracy or speed left out nothing, as far as the row tells.

    Rows that were written before `tokens_mean` was do not tell of plans inside the language model.
    """
    from foveate.benchmark.budgets import UNTOUCHED

    every = row.get("tokens_in")
    if row["plan"] == UNTOUCHED or every is None:
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
    """The JSON document in a file of results, with today's names of methods.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON.
    """
    return json.loads(current_names(read_text(path)))


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a document in one step: whoever reads sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, document, indent=1)


def earlier(path: Path, described: dict[str, Any], parts: Sequence[str], kind: str | None = None) -> list[list[Any]]:
    """The lists `parts` of a result that was written before; empty ones where there is none.

    Args:
        path: The file.
        described: The settings, which must be those of the file.
        parts: Such as "rows".
        kind: What the file must say that it is; None where results of this benchmark say nothing.

    Raises:
        FoveateError: it is no such result, or was measured with other settings.
    """
    if not path.exists():
        return [[] for _ in parts]
    try:
        document = read_results(path)
        found, settings = document.get("kind"), document["settings"]
        lists = [document[part] for part in parts]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FoveateError(f"{path} is no result of this benchmark, so it cannot be resumed.") from error
    if kind is not None and found != kind:
        raise FoveateError(f"{path} is no result of `foveate bench {kind}`, so it cannot be resumed.")
    described = json.loads(json.dumps(described))  # as the file has them: lists in place of tuples
    if settings != described:
        different = sorted(key for key in described if settings.get(key) != described[key])
        raise FoveateError(f"{path} was measured with other settings ({', '.join(different)}); choose another file.")
    return lists
