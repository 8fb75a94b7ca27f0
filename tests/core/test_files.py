"""Files and folders that are there completely or not at all."""

import itertools
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from foveate.core.errors import FoveateError
from foveate.core.files import atomic_write, stamp, write_json, write_text
from tests.full_disk import room


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with atomic_write(path) as partial:
        partial.write_text("new, half")
        assert path.read_text() == "old"
        partial.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    for names in (("a", "b"), ("c",)):
        with atomic_write(tmp_path / "folder") as partial:
            partial.mkdir()
            for name in names:
                (partial / name).touch()
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["c"]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("call", range(12))
def test_an_interrupted_folder_is_the_old_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """Whichever call of the operating system is interrupted while a folder takes the place of another."""

    def write(names: tuple[str, ...]) -> None:
        with atomic_write(tmp_path / "folder") as partial:
            partial.mkdir()
            for name in names:
                (partial / name).touch()

    calls = itertools.count()

    def interrupted(name: str) -> None:
        original = getattr(os, name)

        def function(*args: Any, **kwargs: Any) -> Any:
            if next(calls) == call:
                raise KeyboardInterrupt
            return original(*args, **kwargs)

        monkeypatch.setattr(os, name, function)

    write(("a", "b", "c"))
    for name in ("replace", "unlink", "rmdir"):
        interrupted(name)
    with suppress(KeyboardInterrupt):
        write(("d", "e"))
    monkeypatch.undo()
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) in (["a", "b", "c"], ["d", "e"])


@pytest.mark.parametrize("error", [RuntimeError("it is full\nsee below"), KeyboardInterrupt(), KeyError("x")])
def test_what_fails_leaves_the_old_file_alone(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    expected = FoveateError if isinstance(error, RuntimeError) else type(error)

    def write() -> None:
        with atomic_write(path) as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(expected) as raised:
        write()
    assert list(tmp_path.iterdir()) == [path] and path.read_text() == "old"
    if expected is FoveateError:
        assert str(raised.value) == f"{path} could not be written: it is full."


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(FoveateError, match=r"none/x could not be written: No such file or directory\."):
        write_json(tmp_path / "none" / "x", {})
    (tmp_path / "file").touch()
    with pytest.raises(FoveateError, match=r"file/x could not be written: Not a directory\."):
        write_text(tmp_path / "file" / "x", "text")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "nan.json", {"loss": float("nan")})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.name == "nt", reason="limits of POSIX")
def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "old")
    with room(100), pytest.raises(FoveateError, match="could not be written: File too large"):
        write_text(tmp_path / "file", "new" * 100)
    assert (tmp_path / "file").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_stamp_changes_with_every_file_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    write_text(folder / "config.json", "{}")
    write_text(folder / "weights", "old")
    before = stamp(folder)
    assert stamp(folder) == before and stamp(str(folder)) == before and len(before) == 2
    write_text(folder / "weights", "new")  # of the same size, and within the resolution of a clock
    after = stamp(folder)
    assert after != before
    (folder / "config.json").unlink()
    assert stamp(folder) not in (before, after)
    assert stamp(folder / "weights") == stamp(folder)
    assert stamp(tmp_path / "none") == () == stamp("owner/name")
    monkeypatch.chdir(tmp_path)
    assert stamp("model") == stamp(folder)
