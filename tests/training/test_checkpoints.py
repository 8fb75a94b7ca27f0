"""A checkpoint exists completely or not at all."""

import pytest

from foveate.training import checkpoints


def write(stage, step, keep=2):
    folder = checkpoints.writing_folder(stage, step)
    (folder / "weights").write_text(str(step), encoding="utf-8")
    return checkpoints.commit(stage, step, keep)


def test_the_newest_complete_one_counts_by_number(tmp_path):
    assert checkpoints.latest(tmp_path / "absent") is None
    for step in (8, 9, 10):
        write(tmp_path, step)
    assert checkpoints.latest(tmp_path) == (tmp_path / "checkpoint-10", 10)
    assert [step for _, step in checkpoints.checkpoints(tmp_path)] == [9, 10]


def test_a_half_written_one_is_never_picked_and_is_cleaned_up(tmp_path):
    write(tmp_path, 4)
    half = checkpoints.writing_folder(tmp_path, 8)
    (half / "weights").write_text("half", encoding="utf-8")
    assert checkpoints.latest(tmp_path) == (tmp_path / "checkpoint-4", 4)
    # The step is reached again after a resume: what the killed run left is not mixed in.
    (half / "leftover").touch()
    write(tmp_path, 8)
    assert sorted(path.name for path in (tmp_path / "checkpoint-8").iterdir()) == ["weights"]

    checkpoints.writing_folder(tmp_path, 12)
    (tmp_path / ".removing-checkpoint-2").mkdir()
    checkpoints.clean(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-4", "checkpoint-8"]


@pytest.mark.parametrize("broken", ["sync", "rename"])
def test_a_stop_before_the_rename_leaves_the_old_state(tmp_path, monkeypatch, broken):
    write(tmp_path, 4)
    folder = checkpoints.writing_folder(tmp_path, 8)
    (folder / "weights").write_text("8", encoding="utf-8")

    def fail(*_):
        raise KeyboardInterrupt

    if broken == "sync":
        monkeypatch.setattr(checkpoints, "_sync", fail)
    else:
        monkeypatch.setattr(type(tmp_path), "rename", fail)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.commit(tmp_path, 8, keep=2)
    assert checkpoints.latest(tmp_path) == (tmp_path / "checkpoint-4", 4)
