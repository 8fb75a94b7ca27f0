r"""Read conversations in LLaVA's format, and check them all before training starts.

A file is a JSON array, or JSONL with one object a line:

    {"id": "1", "image": "receipts/7.png", "conversations": [
        {"from": "human", "value": "<image>\nWhat is the total?"}, {"from": "gpt", "value": "12.40"}]}

`image` (or `images`) is a path or a list of paths, and may be left out for text alone; there is one `<image>` in the
turns of `human` for every path. A first turn from `system` is possible, or a text `system` next to the turns, which
becomes it. `id` and `task` name a row. Rows with a video, sound or tools are refused; other fields are ignored with a
warning.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from foveate.core.errors import FoveateError, check_text
from foveate.core.text_files import lines_of, read_text
from foveate.images import FORMATS, MAX_PIXELS
from foveate.training.examples import PLACEHOLDER, ROLES, Example, Turn

#: Fields of an entry and of a turn that are read.
_FIELDS, _TURN_FIELDS = {"id", "image", "images", "conversations", "system", "task"}, {"from", "value"}
#: Unsupported content; without it the rest of a row would be misleading.
_REFUSED = ("video", "videos", "audio", "audios", "sound", "tools")
#: Placeholders of such content, which are text in a row that has none.
_PLACEHOLDERS = ("<video>", "<audio>")

#: Number of problems that are listed in full.
MOST_PROBLEMS = 20


def read_conversations(path: str | Path, images: str | Path | None = None) -> list[Example]:
    """Read and check a JSON or JSONL file.

    Args:
        path: The file. A first character `[` makes it a JSON array, everything else JSONL.
        images: Folder of the image paths; the file's own by default.

    Raises:
        FoveateError: naming, with file and line, every entry (up to `MOST_PROBLEMS`) that cannot be learned from:
            broken JSON, missing or unreadable images, a number of `<image>` that differs from that of the images,
            empty answers, turns in the wrong order.
    """
    path = Path(path)
    folder = path.parent if images is None else Path(images)
    if path.exists() and not path.is_file():  # reading a device might not end
        raise FoveateError(f"the data file {path} is no file.")
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise FoveateError(f"the data file {path} cannot be read: {error}") from error

    examples: list[Example] = []
    problems: list[str] = []
    unread: Counter[str] = Counter()
    readable: dict[Path, str | None] = {}
    for place, entry in _entries(text):
        entry_problems = [entry] if isinstance(entry, str) else _problems(entry, folder, readable)
        problems += [f"{path}, {place}: {problem}" for problem in entry_problems]
        if not entry_problems:
            examples.append(_example(entry, folder))
            unread.update(_unread(entry))
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


def _unread(entry: dict[str, Any]) -> set[str]:
    """Ignored content of an entry."""
    unread = {f"the field {name[:60]!r}" for name, value in entry.items() if name not in _FIELDS and not _empty(value)}
    for turn in entry["conversations"]:
        unknown = (name for name, value in turn.items() if name not in _TURN_FIELDS and not _empty(value))
        unread |= {f"the field {name[:60]!r} of turns" for name in unknown}
        unread |= {
            f"{placeholder}, which is text here," for placeholder in _PLACEHOLDERS if placeholder in turn["value"]
        }
    return unread


def _empty(value: Any) -> bool:
    return value is None or (isinstance(value, (str, list, dict)) and not value)


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


def _paths(entry: dict[str, Any]) -> list[str]:
    image = entry.get("images") if entry.get("image") is None else entry["image"]
    return [] if image is None else [image] if isinstance(image, str) else list(image)


def _problems(entry: Any, folder: Path, readable: dict[Path, str | None]) -> list[str]:
    """Problems of an entry; `readable` caches the problems of images."""
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
    for name in ("image", "images"):
        image = entry.get(name)
        listed = isinstance(image, list) and all(isinstance(path, str) for path in image)
        if not (image is None or isinstance(image, str) or listed):
            return [f"`{name}` must be a path or a list of paths"]
    if entry.get("image") is not None and entry.get("images") is not None:
        return ["`image` and `images` stand together; write one of them"]
    if refused := [name for name in _REFUSED if not _empty(entry.get(name))]:
        return [f"`{refused[0]}` cannot be learned from here; possible are `image` and text"]
    system = entry.get("system")
    if not _empty(system):
        if not isinstance(system, str):
            return ["`system` must be a text"]
        if turns[0]["from"] == "system":
            return ["`system` stands next to a first turn from system; write one of them"]
        if PLACEHOLDER in system:
            return [f"`system` holds {PLACEHOLDER}; only human shows images"]

    problems = _turn_problems(turns)
    placeholders = sum(turn["value"].count(PLACEHOLDER) for turn in turns)
    paths = _paths(entry)
    if placeholders != len(paths):
        problems.append(f"{placeholders} {PLACEHOLDER} in the turns, but {len(paths)} images")
    for name in paths:
        path = folder / name
        if path not in readable:
            readable[path] = _image_problem(path)
        if readable[path] is not None:
            problems.append(str(readable[path]))
    return problems


def _turn_problems(turns: list[dict[str, str]]) -> list[str]:
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
        if turn["from"] != "human" and PLACEHOLDER in turn["value"]:
            problems.append(f"turn {number} is from {turn['from']} and holds {PLACEHOLDER}; only human shows images")
    return problems


def _image_problem(path: Path) -> str | None:
    """Why an image cannot be used, from its header and checksums, without decoding all of it."""
    try:
        if not path.is_file():
            return f"the image {path} does not exist"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large sizes, which are an error here
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    return f"the image {path} has more than {MAX_PIXELS / 1e6:.3g} megapixels"
                image.verify()
    except Exception as error:  # Pillow's readers raise any error for a broken file
        return f"the image {str(path)[:200]} cannot be read: {str(error)[:200]}"
    return None


def _example(entry: dict[str, Any], folder: Path) -> Example:
    turns: list[Turn] = [{"from": turn["from"], "value": turn["value"]} for turn in entry["conversations"]]
    if not _empty(entry.get("system")):
        turns.insert(0, {"from": "system", "value": entry["system"]})
    task = entry.get("task")
    return Example([folder / name for name in _paths(entry)], turns, task=task if isinstance(task, str) else "")
