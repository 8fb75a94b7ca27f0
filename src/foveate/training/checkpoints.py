"""Checkpoints that exist completely or not at all.

A checkpoint is written into a folder of another name and renamed when all of it is on the disk. A rename is one
step of the file system, so a run that is killed at any moment leaves either the old state or the new one;
what it leaves of a half-written folder has a name that nothing picks up, and is removed by the next run.
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
    """Where the checkpoint of `step` is written before it counts; emptied if a killed run left something there."""
    folder = stage_folder / f"{WRITING}{step}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def commit(stage_folder: Path, step: int, keep: int) -> Path:
    """Makes what was written for `step` the newest checkpoint, and removes all but the newest `keep`."""
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
    found = [
        (path, int(path.name.removeprefix(_PREFIX)))
        for path in stage_folder.glob(f"{_PREFIX}*")
        if path.name.removeprefix(_PREFIX).isdigit()
    ]
    return sorted(found, key=lambda item: item[1])


def latest(stage_folder: Path) -> tuple[Path, int] | None:
    """The newest complete checkpoint of a stage, or None."""
    found = checkpoints(stage_folder)
    return found[-1] if found else None


def clean(stage_folder: Path) -> None:
    """Removes what a killed run left half written or half removed."""
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
    """Waits until a file, or the entries of a folder, are on the disk; Windows cannot open folders and leaves those."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
