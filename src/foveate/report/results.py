"""Result files: reading, validation and merging."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePath
from typing import Any

from foveate.benchmark.results import read_results
from foveate.core.errors import FoveateError
from foveate.core.full_model import FULL_MODEL

#: The task of rows that are means over tasks, and what names of groups of tasks begin with.
ALL, GROUP = "all", "group:"
_POSSIBLE = "give files of `foveate bench accuracy`, `speed`, `joint`, `trained` or `released`."
#: Kind of files with rows of accuracy and, under "speed", a result of `foveate bench speed`.
RELEASED = "released"
#: Kind of files with connectors that were trained under one protocol, which are no plans.
TRAINED = "trained"


@dataclass(frozen=True)
class Source:
    """Origin of rows.

    Args:
        name: Name of the file.
        kind: "accuracy", "speed", "joint", "trained" or "released".
        command: That made it.
        hardware: It ran on.
        versions: Of what was measured.
        settings: Of the run.
        note: What its columns mean.
    """

    name: str
    kind: str
    command: str
    hardware: dict[str, Any]
    versions: dict[str, Any]
    settings: dict[str, Any]
    note: str


@dataclass
class Results:
    """Rows of all files, in the format of the benchmark commands."""

    sources: list[Source] = field(default_factory=list)
    accuracy: list[dict[str, Any]] = field(default_factory=list)
    speed: list[dict[str, Any]] = field(default_factory=list)
    joint: list[dict[str, Any]] = field(default_factory=list)
    impossible: list[dict[str, str]] = field(default_factory=list)
    trained: list[dict[str, Any]] = field(default_factory=list)
    claims: list[dict[str, Any]] = field(default_factory=list)

    @property
    def models(self) -> list[str]:
        """Models in the order of the files."""
        return list(dict.fromkeys(row["model"] for row in (*self.accuracy, *self.speed, *self.joint)))

    @property
    def methods(self) -> list[str]:
        """Methods of plans with one step, in alphabetical order."""
        rows = (*self.accuracy, *self.speed, *self.joint)
        return sorted({row["method"] for row in rows if row["method"] != FULL_MODEL and "+ " not in row["method"]})


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e100  # and no NaN


def _share(value: Any) -> bool:
    return _number(value) and value <= 1


def _budget(value: Any) -> bool:
    return value is None or isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool))


def _object(value: Any) -> bool:
    return isinstance(value, dict)


def _maybe(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


#: What rows must have, and what they may have (None where it is missing).
_MUST: dict[str, dict[str, Callable[[Any], bool]]] = {
    "accuracy": {
        "model": _text, "plan": _text, "task": _text, "count": _number, "accuracy": _share, "low": _share,
        "high": _share, "tokens_kept": _number,
    },
    "speed": {"model": _text, "plan": _text, "batch": _number, "tokens": _number, "seconds": _object},
    "joint": {"model": _text, "plan": _text, "weights": _text, "cache": _text, "task": _text, "accuracy": _share},
}  # fmt: skip
_MAY: dict[str, dict[str, Callable[[Any], bool]]] = {
    "accuracy": {
        "method": _text, "budget": _budget, "majority": _share, "relative": _number, "relative_low": _number,
        "relative_high": _number, "agreement": _share, "difficult": _object, "tokens_in": _number,
    },
    "speed": {
        "method": _text, "budget": _budget, "group": _budget, "device": _text, "dtype": _text, "tokens_in": _number,
        "tokens_mean": _number, "tokens_left": _number,
        "spread": _object, "peak_bytes": _number, "kv_bytes": _number, "flops": _object, "speed_up": _number,
        "efficiency": _number, "selection_of_prefill": _number,
    },
    "joint": {
        "method": _text, "budget": _budget, "count": _number, "low": _share, "high": _share, "relative": _number,
        "relative_low": _number, "relative_high": _number, "parts": _number, "tokens_in": _number,
        "tokens_kept": _number,
        "seconds": lambda value: _number(value) or _object(value), "bytes": _object,
    },
}  # fmt: skip
#: Numbers of inner objects; None where they are missing.
_INNER: dict[str, dict[str, tuple[str, ...]]] = {
    "accuracy": {"difficult": ("count", "accuracy", "full_model")},
    "speed": {
        "seconds": ("preprocess", "encoder", "selection", "prefill", "ttft", "decode_per_token"),
        "flops": ("counted", "formula"),
    },
    "joint": {"bytes": ("weights", "kv")},
}
#: What may not occur twice.
_KEYS = {
    "accuracy": ("model", "plan", "task"),
    "speed": ("model", "plan", "budget", "group", "batch", "device", "dtype"),
    "joint": ("model", "plan", "weights", "cache", "task"),
}


def read(paths: Sequence[Path]) -> Results:
    """Read the rows of result files; those of the earlier `foveate bench selection` count as speed.

    Raises:
        FoveateError: a file is no such result, has no rows or a row that cannot be read, or two files have the same.
        OSError: a file cannot be opened.
    """
    results, sources = Results(), {}
    for path, source_kind, document in [part for file in paths for part in _parts(file)]:
        if source_kind == TRAINED:
            _read_trained(results, document, path)
            continue
        kind = "accuracy" if source_kind == RELEASED else source_kind
        rows = [_checked(row, kind, f"{path}: row {number}") for number, row in enumerate(_rows(document, path), 1)]
        for row in rows:
            key = (kind, *(row[name] for name in _KEYS[kind]))
            if key in sources:
                raise FoveateError(
                    f"{kind} of {row['plan']} on {row['model']} is in {sources[key]} and again in {path}; "
                    "numbers of two runs cannot share one name."
                )
            sources[key] = path
        results.sources.append(_source(document, source_kind, path))
        getattr(results, kind).extend(rows)
        results.impossible += [line for line in _impossible(document, path) if line not in results.impossible]
    if not results.sources:
        raise FoveateError(f"a report needs results; {_POSSIBLE}")
    _shorten(results)
    return results


def _read_trained(results: Results, document: dict[str, Any], path: Path) -> None:
    """Add the rows of a result of `foveate bench trained`, with the claims as this version has them.

    Raises:
        FoveateError: another file has been read, or a row misses a value.
    """
    from foveate.benchmark.trained import conclude, systems_by_name, table

    if results.trained:
        raise FoveateError(f"{path}: trained connectors are in another file already; numbers of two tables do not mix.")
    try:
        table(conclude(document))
        controls = {name: system.control for name, system in systems_by_name().items()}
        rows = [{**row, "control": controls.get(row["system"], False)} for row in document["rows"]]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise FoveateError(f"{path}: a row misses what `foveate bench trained` writes ({error!r}).") from error
    results.sources.append(_source(document, TRAINED, path))
    results.trained, results.claims = rows, document["claims"]


def _shorten(results: Results) -> None:
    """Shorten model names to their last part, as `bench speed` does for folders, where that is unambiguous."""
    lines = [*results.accuracy, *results.speed, *results.joint, *results.impossible]
    longer: dict[str, set[str]] = {}
    for name in {line["model"] for line in lines}:
        longer.setdefault(PurePath(name).name, set()).add(name)
    for line in lines:
        short = PurePath(line["model"]).name
        if len(longer[short] - {short}) == 1:
            line["model"] = short


def _parts(path: Path) -> list[tuple[Path, str, dict[str, Any]]]:
    """Return the results in a file: path, kind and content of each."""
    document, kind = _document(path)
    times = document.get("speed") if kind == RELEASED else None
    if not isinstance(times, dict) or not times.get("rows"):
        return [(path, kind, document)]
    if not isinstance(times["rows"], list):
        raise FoveateError(f"{path}: 'speed' is not a result of `foveate bench speed`.")
    return [(path, kind, document), (path, "speed", times)]


def _document(path: Path) -> tuple[dict[str, Any], str]:
    """Return the content of a file and its kind."""
    try:
        document = read_results(path)
        json.dumps(document, ensure_ascii=False).encode()  # halves of characters can be escaped, but not written
    except (ValueError, RecursionError) as error:
        hint = " (this file has the answers to single questions; give the result, whose name ends in .json)"
        raise FoveateError(f"{path} is not JSON{hint if path.suffix == '.jsonl' else ''}: {error}") from error
    rows = document.get("rows") if isinstance(document, dict) else None
    if not isinstance(rows, list):
        raise FoveateError(f"{path} is not a result of a benchmark: it has no rows; {_POSSIBLE}")
    if not rows:
        raise FoveateError(f"{path} has no rows yet, so there is nothing to report of it.")
    kind = document.get("kind")
    first = rows[0] if isinstance(rows[0], dict) else {}
    if kind is None and "shape" in first:
        return document, "speed"
    if kind is None and "encoder" in first:
        raise FoveateError(f"{path} compares encoders, not plans, and has no place in this report; {_POSSIBLE}")
    if kind not in (*_MUST, RELEASED, TRAINED):
        raise FoveateError(f"{path} is of the kind {kind!r}, which this report cannot show; {_POSSIBLE}")
    return document, kind


def _rows(document: dict[str, Any], path: Path) -> list[Any]:
    if document.get("kind") is not None:
        return document["rows"]
    from foveate.benchmark.speed.formatting import rows_of

    try:
        rows = rows_of(document)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise FoveateError(f"{path}: a row misses what `foveate bench selection` wrote ({error}).") from error
    device = document["settings"].get("device") if isinstance(document.get("settings"), dict) else None
    return [{"device": device, **row} for row in rows]


def _checked(row: Any, kind: str, where: str) -> dict[str, Any]:
    """Return a row with all required and optional fields."""
    if not isinstance(row, dict):
        raise FoveateError(f"{where} is not an object.")
    checked = dict(row)
    for name, check in _MUST[kind].items():
        if name not in row:
            raise FoveateError(f"{where} has no {name!r}.")
        _check(row[name], check, name, where)
    for name, check in _MAY[kind].items():
        checked.setdefault(name, None)
        _check(checked[name], _maybe(check), name, where)
    for name, parts in _INNER[kind].items():
        if checked[name] is None:
            if name == "difficult":  # absent if there are no difficult questions
                continue
            checked[name] = {}
        inner = dict.fromkeys(parts) | checked[name]
        for part in parts:
            _check(inner[part], _maybe(_number), f"{name}.{part}", where)
        checked[name] = inner
    if kind == "joint" and isinstance(checked["seconds"], dict):
        for name, value in checked["seconds"].items():
            _check(value, _maybe(_number), f"seconds.{name}", where)
    if kind == "speed" and checked["seconds"]["ttft"] is None:
        raise FoveateError(f"{where} has no time to the first token ('seconds': 'ttft').")
    method, budget = _parts_of(checked["plan"])
    checked["method"] = checked["method"] or method
    checked["budget"] = budget if checked["budget"] is None else str(checked["budget"])
    return checked


def _check(value: Any, check: Callable[[Any], bool], name: str, where: str) -> None:
    if not check(value):
        shown = repr(value)
        raise FoveateError(f"{where}: {name!r} cannot be {shown if len(shown) < 40 else shown[:37] + '...'}.")


@cache
def _parts_of(plan: str) -> tuple[str, str]:
    """Return the method names of a plan without arguments, and the budget of a plan of one step."""
    from foveate.core.plan import Plan

    if plan == FULL_MODEL:
        return plan, ""
    try:
        steps = Plan.of(plan).steps
    except FoveateError:
        return plan, ""
    budget = steps[0].budget if len(steps) == 1 else None
    return " + ".join(step.method.name for step in steps), "" if budget is None else str(budget)


def _source(document: dict[str, Any], kind: str, path: Path) -> Source:
    def part(name: str) -> dict[str, Any]:
        value = document.get(name)
        return value if isinstance(value, dict) else {}

    command, note = (value if isinstance(value := document.get(name), str) else "" for name in ("command", "note"))
    return Source(path.name, kind, command, part("hardware"), part("versions"), part("settings"), note)


def _impossible(document: dict[str, Any], path: Path) -> list[dict[str, str]]:
    lines = document.get("impossible", [])
    if not isinstance(lines, Iterable):
        raise FoveateError(f"{path}: 'impossible' is not a list.")
    impossible = []
    for line in lines:
        if not isinstance(line, dict) or not {"plan", "reason"} <= set(line) or not {"model", "shape"} & set(line):
            raise FoveateError(f"{path}: a line of 'impossible' misses its model, plan or reason.")
        model = line.get("model", line.get("shape"))
        why = {"code": str(line.get("code", "")), "reason": str(line["reason"])}  # older results have no codes
        impossible.append({"model": str(model), "plan": str(line["plan"]), **why})
    return impossible
