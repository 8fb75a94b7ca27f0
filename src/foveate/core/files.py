"""Atomic writes of files and folders."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from foveate.core.errors import FoveateError


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Generator[Path]:
    """A path to write a file or a folder to, which takes the place of `path` in one step when the context ends.

    Whoever reads sees the old content or the new one (for an instant none, where a folder takes the place of another).
    Where writing fails, the old content stays and nothing else remains. The name holds the number of the process, so
    that two of them never write into one file.

    Args:
        path: What is written; its folder exists.

    Raises:
        FoveateError: it could not be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        _remove(partial)  # of a process of this number that was killed
        yield partial
        if partial.is_dir() and path.is_dir():
            _replace_folder(path, partial)
        else:
            partial.replace(path)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have their own for a full disk
        raise FoveateError(f"{path} could not be written: {_reason(error)}.") from error
    finally:
        _remove(partial)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file in UTF-8 in one step; errors are those of `atomic_write`."""
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], document: Any, indent: int = 2) -> None:
    """Write a JSON file in one step; errors are those of `atomic_write`."""
    write_text(path, json.dumps(document, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def stamp(path: str | os.PathLike[str]) -> tuple[Any, ...]:
    """What changes where a file, or a file of a folder, is written again: the key of what was read from it.

    It is empty where there is neither.
    """
    path = Path(path).resolve()
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    states = [(file, file.stat()) for file in files if file.is_file()]
    return tuple((str(file), state.st_ino, state.st_size, state.st_mtime_ns) for file, state in states)


def _replace_folder(path: Path, new: Path) -> None:
    """Put a new folder in the place of another, which is deleted only when the new one is there."""
    previous = path.with_name(f".{path.name}.{os.getpid()}.previous")
    _remove(previous)
    try:
        path.replace(previous)
        new.replace(path)
    except BaseException:
        if not path.exists():
            previous.replace(path)
        raise
    _remove(previous)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200].rstrip(".")
