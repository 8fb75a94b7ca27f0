"""File of single answers next to a result, so that a run can be stopped and resumed.

The first line has the settings of the answers. Later lines are answers, plans that cannot run on a model, or finished
tasks. All lines of a batch are written at once; a kill loses the current batch.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from foveate.benchmark.results import parse_result
from foveate.core.errors import FoveateError
from foveate.core.files import write_text
from foveate.core.text_files import lines_of, read_text

KIND = "accuracy-rows"


class Rows:
    """Answers of one run, in memory and optionally in a file.

    Args:
        path: The file; None keeps the answers in memory only.
        settings: What they were made with, as plain JSON values.
        resume: Go on with what the file holds.
        partial: Names of settings that only some answers depend on: where one side lacks them, they do not differ.

    Attributes:
        rows: every answer.
        impossible: for each (model, plan) that cannot run the "reason" and its "code".
        finished: (model, plan, task) of which there is every answer.

    Raises:
        FoveateError: there are answers already and `resume` is not given, they were made with other settings, or the
            file is none of these.
    """

    def __init__(
        self, path: Path | None, settings: dict[str, Any], resume: bool = False, partial: Collection[str] = ()
    ) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self.impossible: dict[tuple[str, str], dict[str, str]] = {}
        self.finished: set[tuple[str, str, str]] = set()
        self._contents: dict[str, str] = {}  # of models, by name
        self._known: set[tuple[Any, ...]] = set()
        head = {"kind": KIND, "settings": json.loads(json.dumps(settings))}
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size:
            self._read(path, head, resume, partial)
        else:
            write_text(path, json.dumps(head) + "\n")

    def has(self, model: str, plan: str, task: str, index: int, turns: int) -> bool:
        """Whether all turns of an item have answers."""
        return all((model, plan, task, index, turn) in self._known for turn in range(turns))

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Add answers that are not recorded yet."""
        new = [row for row in rows if _key(row) not in self._known]
        self._take(new)
        self._write(new)

    def check_model(self, model: str, content: str) -> None:
        """Raise FoveateError if there are answers of a model with other content, such as weights trained further."""
        if self._contents.get(model, content) != content:
            raise FoveateError(
                f"{self.path} has answers of {model} with other weights: its files have changed since; choose another "
                "file."
            )

    def begin(self, model: str, content: str) -> None:
        """Record what a model is whose answers follow."""
        if model not in self._contents:
            self._write([{"begun": {"model": model, "content": content}}])
            self._contents[model] = content

    def fail(self, model: str, plan: str, error: FoveateError) -> None:
        """Record that a plan cannot run on a model; its earlier answers no longer count."""
        why = error.as_json()
        self._write([{"impossible": {"model": model, "plan": plan, **why}}])
        self.impossible[model, plan] = why

    def finish(self, model: str, plans: Iterable[str], task: str) -> None:
        """Record that all answers of these plans to a task are complete."""
        plans = [plan for plan in plans if (model, plan, task) not in self.finished]
        if plans:
            self._write([{"finished": {"model": model, "plans": plans, "task": task}}])
            self.finished |= {(model, plan, task) for plan in plans}

    def _take(self, rows: Iterable[dict[str, Any]]) -> None:
        for row in rows:
            self.rows.append(row)
            self._known.add(_key(row))

    def _write(self, entries: list[dict[str, Any]]) -> None:
        if self.path is not None and entries:
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries))
            except OSError as error:  # the file may end in half a line, which --resume removes
                raise FoveateError(f"{self.path} could not be written: {error.strerror}.") from error

    def _read(self, path: Path, head: dict[str, Any], resume: bool, partial: Collection[str]) -> None:
        entries, broken = _entries(path)
        if not entries or not isinstance(entries[0], dict) or entries[0].get("kind") != KIND:
            raise FoveateError(f"{path} has no answers of this benchmark; choose another file.")
        if all("begun" in entry for entry in entries[1:]):  # a run that failed before its first answer
            write_text(path, json.dumps(head) + "\n")
            return
        if not resume:
            raise FoveateError(f"{path} has answers already; continue with --resume, or choose another file.")
        file_settings, settings = entries[0]["settings"], head["settings"]
        new = {name: settings[name] for name in partial if name in settings and name not in file_settings}
        file_settings |= new
        settings |= {name: file_settings[name] for name in partial if name in file_settings and name not in settings}
        if file_settings != settings:
            different = ", ".join(
                sorted(key for key in {*file_settings, *settings} if file_settings.get(key) != settings.get(key))
            )
            raise FoveateError(f"{path} was made with other settings ({different}); choose another file.")
        if broken or new:  # a kill or a full disk cut the last line off
            write_text(path, "".join(json.dumps(e, ensure_ascii=False) + "\n" for e in entries))
        for entry in entries[1:]:
            if "impossible" in entry:
                line = entry["impossible"]
                why = {"code": line.get("code", ""), "reason": line["reason"]}  # older files have no codes
                self.impossible[line["model"], line["plan"]] = why
            elif "finished" in entry:
                line = entry["finished"]
                self.finished |= {(line["model"], plan, line["task"]) for plan in line["plans"]}
            elif "begun" in entry:
                self._contents[entry["begun"]["model"]] = entry["begun"]["content"]
            else:
                self._take([entry])


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["model"], row["plan"], row["task"], row["index"], row["turn"]


def _entries(path: Path) -> tuple[list[Any], bool]:
    """Read the lines of a file up to the first broken one, and whether there is one."""
    entries = []
    try:
        text = read_text(path, errors="replace")
    except OSError as error:
        raise FoveateError(f"{path} cannot be read: {error}") from error
    ends = text.endswith("\n")
    for line in lines_of(text)[: -1 if ends else None]:  # answers may hold separators such as U+2028
        try:
            entries.append(parse_result(line))
        except json.JSONDecodeError:
            return entries, True
    return entries, not ends
