"""Atomic checkpoints.

A checkpoint is written into a temporary folder and renamed once all of it is on the disk. A rename is one
step of the file system, so a run that is killed at any moment leaves either the old state or the new one;
a half-written folder has a name that is ignored, and is removed by the next run.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

#: Prefix of a checkpoint that is being written.
WRITING = ".writing-"
_REMOVING = ".removing-"
_PREFIX = "checkpoint-"


def writing_folder(stage_folder: Path, step: int) -> Path:
    """Temporary folder for the checkpoint of `step`, emptied if a killed run left one."""
    folder = stage_folder / f"{WRITING}{step}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def commit(stage_folder: Path, step: int, keep: int) -> Path:
    """Turn the temporary folder of `step` into the newest checkpoint, and remove all but the newest `keep`."""
    source, target = stage_folder / f"{WRITING}{step}", stage_folder / f"{_PREFIX}{step}"
    for file in sorted(source.rglob("*")):
        _sync(file)
    _sync(source)
    if target.exists():
        _remove(target)
    source.rename(target)
    _sync(stage_folder)
    for path, _ in checkpoints(stage_folder)[:-keep]:
        _remove(path)
    return target


def checkpoints(stage_folder: Path) -> list[tuple[Path, int]]:
    """Complete checkpoints and their steps, oldest first."""
    complete = [
        (path, int(path.name.removeprefix(_PREFIX)))
        for path in stage_folder.glob(f"{_PREFIX}*")
        if path.name.removeprefix(_PREFIX).isdigit()
    ]
    return sorted(complete, key=lambda item: item[1])


def latest(stage_folder: Path) -> tuple[Path, int] | None:
    """The newest complete checkpoint of a stage, or None."""
    complete = checkpoints(stage_folder)
    return complete[-1] if complete else None


def clean(stage_folder: Path) -> None:
    """Remove temporary folders of killed runs."""
    for pattern in (WRITING, _REMOVING):
        for path in stage_folder.glob(f"{pattern}*"):
            shutil.rmtree(path, ignore_errors=True)


def _remove(path: Path) -> None:
    # Renamed first: a kill in the middle of removing must not leave a checkpoint with half its files.
    doomed = path.with_name(f"{_REMOVING}{path.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed)


def _sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk; on Windows folders cannot be opened."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
