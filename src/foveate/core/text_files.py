"""Text and JSON files, with or without a byte-order mark."""

from __future__ import annotations

import codecs
import json
from os import PathLike
from pathlib import Path
from typing import Any

# UTF-32 before UTF-16, whose mark it begins with.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def decoded(data: bytes, errors: str = "strict") -> str:
    """Bytes as text: in the encoding that a byte-order mark says, without it in UTF-8.

    Raises:
        UnicodeDecodeError: they are no such text.
    """
    encoding = next((encoding for mark, encoding in _MARKS if data.startswith(mark)), "utf-8")
    return data.decode(encoding, errors)


def read_text(path: str | PathLike[str], errors: str = "strict") -> str:
    r"""A file as text, without a byte-order mark, with `\n` at the end of lines.

    Raises:
        OSError: it cannot be read.
        UnicodeDecodeError: it is no text.
    """
    return decoded(Path(path).read_bytes(), errors).replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: str | PathLike[str]) -> Any:
    """The JSON document in a file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON.
    """
    return json.loads(read_text(path))


def lines_of(text: str) -> list[str]:
    """Lines of JSONL: marks inside of a file that was put together from several are left out.

    `str.splitlines` would end lines at separators that JSON does not escape.
    """
    return [line.removeprefix("\ufeff") for line in text.split("\n")]
