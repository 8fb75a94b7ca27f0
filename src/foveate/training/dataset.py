r"""Read conversations in LLaVA's format, and check them all before training starts.

A file is a JSON array, or JSONL with one object a line:

    {"id": "1", "image": "receipts/7.png", "conversations": [
        {"from": "human", "value": "<image>\nWhat is the total?"}, {"from": "gpt", "value": "12.40"}]}

`image` (or `images`) is a path or a list of paths, and may be left out for text alone; there is one `<image>` in the
turns of `human` for every path. `video` (or `videos`) and `<video>` are the same for clips, where a model reads them;
as in LLaVA-Video's files, `<image>` stands for a clip in rows without images. A first turn from `system` is possible,
or a text `system` next to the turns, which becomes it. `id` and `task` name a row. Rows with sound or tools are
refused; other fields are ignored with a warning.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from foveate.clips import Clip
from foveate.core.errors import FoveateError, check_text
from foveate.core.frames import FrameSampler
from foveate.core.plan import Step
from foveate.core.text_files import lines_of, read_text
from foveate.training.examples import CLIP_PLACEHOLDER, PLACEHOLDER, ROLES, ClipFile, Example, Turn
from foveate.training.row_files import FIELDS, RowFiles, is_empty

#: Placeholders of the files that a row names.
_PLACEHOLDERS = {"image": PLACEHOLDER, "video": CLIP_PLACEHOLDER}
#: Fields of an entry and of a turn that are read.
_FIELDS = {"id", "conversations", "system", "task"}.union(*FIELDS.values())
_TURN_FIELDS = {"from", "value"}
#: Unsupported content; without it the rest of a row would be misleading.
_REFUSED = ("audio", "audios", "sound", "tools")
#: A placeholder of such content, which is text in a row that has none.
_AUDIO = "<audio>"

#: Why rows with a video are refused where only images are read.
NO_CLIPS = "possible are `image` and text"

#: Number of problems that are listed in full.
MOST_PROBLEMS = 20


def read_conversations(
    path: str | Path,
    images: str | Path | None = None,
    videos: str | Path | None = None,
    *,
    sampler: Step[FrameSampler] | None = None,
    no_clips: str | None = NO_CLIPS,
) -> list[Example]:
    """Read and check a JSON or JSONL file.

    Args:
        path: The file. A first character `[` makes it a JSON array, everything else JSONL.
        images: Folder of the image paths; the file's own by default.
        videos: Folder of the paths of clips; the file's own by default.
        sampler: Chooses the frames of clips; None: those that `open_clip` reads without one.
        no_clips: Why rows with a video are refused; None: they are read.

    Raises:
        FoveateError: naming, with file and line, every entry (up to `MOST_PROBLEMS`) that cannot be learned from:
            broken JSON, missing or unreadable images and clips, a number of placeholders that differs from that of
            the images or clips, empty answers, turns in the wrong order.
    """
    path = Path(path)
    folders = {"image": images, "video": videos}
    files = RowFiles(
        {kind: path.parent if folder is None else Path(folder) for kind, folder in folders.items()}, no_clips
    )
    if path.exists() and not path.is_file():  # reading a device might not end
        raise FoveateError(f"the data file {path} is no file.")
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise FoveateError(f"the data file {path} cannot be read: {error}") from error

    examples: list[Example] = []
    problems: list[str] = []
    unread: Counter[str] = Counter()
    for place, entry in _entries(text):
        entry_problems = [entry] if isinstance(entry, str) else _problems(entry, files)
        problems += [f"{path}, {place}: {problem}" for problem in entry_problems]
        if not entry_problems:
            examples.append(_example(entry, files, sampler))
            unread.update(_unread(entry, files))
    if problems:
        shown = problems[:MOST_PROBLEMS]
        if len(problems) > len(shown):
            shown.append(f"and {len(problems) - len(shown)} more")
        count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
        raise FoveateError(f"{path} has {count}:\n" + ";\n".join(shown))
    if not examples:
        raise FoveateError(f"{path} holds no conversations.")
    if unread:
        named = ", ".join(f"{what} ({count} row{'s' * (count > 1)})" for what, count in sorted(unread.items())[:20])
        warnings.warn(f"{path}: not learned from: {named}.", stacklevel=2)
    return examples


def _unread(entry: dict[str, Any], files: RowFiles) -> set[str]:
    """Ignored content of an entry."""
    unread = {
        f"the field {name[:60]!r}" for name, value in entry.items() if name not in _FIELDS and not is_empty(value)
    }
    text = [_AUDIO] + [placeholder for kind, placeholder in _PLACEHOLDERS.items() if kind not in files.kinds]
    for turn in entry["conversations"]:
        unknown = (name for name, value in turn.items() if name not in _TURN_FIELDS and not is_empty(value))
        unread |= {f"the field {name[:60]!r} of turns" for name in unknown}
        unread |= {f"{placeholder}, which is text here," for placeholder in text if placeholder in turn["value"]}
    return unread


def _entries(text: str) -> Iterator[tuple[str, Any]]:
    """Yield (place, entry) of every entry; for broken JSON the entry is a text that says what is wrong."""
    if text.lstrip()[:1] == "[":
        yield from _array_entries(text)
        return
    for number, line in enumerate(lines_of(text), 1):
        if not line.strip():
            continue
        try:
            yield f"line {number}", _not_text(json.loads(line))
        except json.JSONDecodeError as error:
            yield f"line {number}", f"broken JSON: {error.msg} at column {error.colno}"
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists in lists
            yield f"line {number}", f"broken JSON: {str(error)[:100]}"


def _array_entries(text: str) -> Iterator[tuple[str, Any]]:
    """Yield the entries of a JSON array one by one, each with its number and line."""
    decoder = json.JSONDecoder()
    position, line, counted, number = text.index("[") + 1, 1, 0, 0

    def skip(position: int, separators: str) -> int:
        while position < len(text) and text[position] in separators:
            position += 1
        return position

    while True:
        position = skip(position, " \t\r\n")
        line, counted = line + text.count("\n", counted, position), position
        if text[position : position + 1] == "]":
            after = skip(position + 1, " \t\r\n")
            if after < len(text):
                yield (
                    f"line {line + text.count(chr(10), position, after)}",
                    "broken JSON: text after the end of the array",
                )
            return
        number += 1
        place = f"line {line} (element {number})"
        try:
            entry, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            yield (
                f"line {error.lineno} (element {number})",
                f"broken JSON: {error.msg} at column {error.colno}",
            )
            return
        except (ValueError, RecursionError) as error:
            yield place, f"broken JSON: {str(error)[:100]}"
            return
        yield place, _not_text(entry)
        position = skip(position, " \t\r\n")
        if text[position : position + 1] == ",":
            position += 1
        elif text[position : position + 1] != "]":
            line += text.count("\n", counted, position)
            yield f"line {line} (after element {number})", "broken JSON: expected `,` or `]`"
            return


def _not_text(entry: Any) -> Any:
    """The entry, or a problem if it is a text: `_entries` yields problems as texts."""
    return (
        f"expected an object with `conversations`, found the text {entry[:100]!r}" if isinstance(entry, str) else entry
    )


def _problems(entry: Any, files: RowFiles) -> list[str]:
    """Problems of an entry."""
    try:
        check_text(json.dumps(entry, ensure_ascii=False), "it")
    except FoveateError as error:
        return [str(error)]
    if not isinstance(entry, dict):
        return [f"expected an object with `conversations`, found {type(entry).__name__}"]
    turns = entry.get("conversations")
    if not isinstance(turns, list) or not turns:
        return ["`conversations` is missing or empty"]
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            return [f"turn {number} is not an object with a text `value`"]
        speaker = turn.get("from")
        if not isinstance(speaker, str) or speaker not in ROLES:
            return [f"turn {number} is from {str(speaker)[:100]!r}; possible are {', '.join(ROLES)}"]
    for kind in files.kinds:
        one, several = FIELDS[kind]
        for name in (one, several):
            named = entry.get(name)
            listed = isinstance(named, list) and all(isinstance(path, str) for path in named)
            if not (named is None or isinstance(named, str) or listed):
                return [f"`{name}` must be a path or a list of paths"]
        if not is_empty(entry.get(one)) and not is_empty(entry.get(several)):
            return [f"`{one}` and `{several}` stand together; write one of them"]
    if refused := [name for name in FIELDS["video"] if files.no_clips is not None and not is_empty(entry.get(name))]:
        return [f"`{refused[0]}` cannot be learned from here; {files.no_clips}"]
    if refused := [name for name in _REFUSED if not is_empty(entry.get(name))]:
        possible = ", ".join(f"`{kind}`" for kind in files.kinds)
        return [f"`{refused[0]}` cannot be learned from here; possible are {possible} and text"]
    system = entry.get("system")
    if not is_empty(system):
        if not isinstance(system, str):
            return ["`system` must be a text"]
        if turns[0]["from"] == "system":
            return ["`system` stands next to a first turn from system; write one of them"]
        for kind in files.kinds:
            if _PLACEHOLDERS[kind] in system:
                return [f"`system` holds {_PLACEHOLDERS[kind]}; only human shows {kind}s"]

    problems = _turn_problems(turns, files)
    turns = _turns(entry, files)
    for kind in files.kinds:
        placeholder, paths = _PLACEHOLDERS[kind], files.paths(entry, kind)
        placeholders = sum(turn["value"].count(placeholder) for turn in turns)
        if placeholders != len(paths):
            problems.append(f"{placeholders} {placeholder} in the turns, but {len(paths)} {kind}s")
        problems += filter(None, (files.problem(kind, path) for path in paths))
    return problems


def _turns(entry: dict[str, Any], files: RowFiles) -> list[Turn]:
    """The turns, with the placeholder of clips where that of images stands for them."""
    turns: list[Turn] = [{"from": turn["from"], "value": turn["value"]} for turn in entry["conversations"]]
    clips_alone = "video" in files.kinds and files.paths(entry, "video") and not files.paths(entry, "image")
    if clips_alone and not any(CLIP_PLACEHOLDER in turn["value"] for turn in turns):
        for turn in turns:
            turn["value"] = turn["value"].replace(PLACEHOLDER, CLIP_PLACEHOLDER)
    return turns


def _turn_problems(turns: list[dict[str, str]], files: RowFiles) -> list[str]:
    problems = []
    spoken = turns[1:] if turns[0]["from"] == "system" else turns
    offset = len(turns) - len(spoken) + 1
    for number, turn in enumerate(spoken):
        expected = ("human", "gpt")[number % 2]
        if turn["from"] != expected:
            problems.append(f"turn {number + offset} is from {turn['from']}, expected {expected}")
            break
    if spoken and len(spoken) % 2:
        problems.append("the last turn is not an answer of gpt")
    if not spoken:
        problems.append("there is no question and no answer")
    for number, turn in enumerate(turns, 1):
        if turn["from"] == "gpt" and not turn["value"].strip():
            problems.append(f"turn {number} is an empty answer")
        for kind in files.kinds if turn["from"] != "human" else ():
            placeholder = _PLACEHOLDERS[kind]
            if placeholder in turn["value"]:
                shown = f"turn {number} is from {turn['from']} and holds {placeholder}"
                problems.append(f"{shown}; only human shows {kind}s")
    return problems


def _example(entry: dict[str, Any], files: RowFiles, sampler: Step[FrameSampler] | None) -> Example:
    turns = _turns(entry, files)
    if not is_empty(entry.get("system")):
        turns.insert(0, {"from": "system", "value": entry["system"]})
    task = entry.get("task")
    clips: list[Clip | ClipFile] = [ClipFile(path, sampler) for path in files.paths(entry, "video")]
    return Example([*files.paths(entry, "image")], turns, task=task if isinstance(task, str) else "", clips=clips)
