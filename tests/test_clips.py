"""Clips: which frames of a file are read, and what is refused in one sentence."""

import sys

import numpy as np
import pytest

from foveate import FoveateError, clips
from foveate.clips import is_clip, open_clip
from tests.video_files import save_clip


@pytest.mark.parametrize(
    ("frames", "fps", "most", "expected"),
    [
        (8, 4, 32, [1, 3, 5, 7]),  # two seconds: four frames, each the middle of half a second
        (60, 2, 4, [7, 22, 37, 52]),  # thirty seconds: the most frames, further apart
        (3, 30, 32, [1]),
        (1, 25, 32, [0]),
    ],
)
def test_frames_at_even_times(tmp_path, frames, fps, most, expected):
    clip = open_clip(save_clip(tmp_path / "a.mkv", frames, fps), max_frames=most)
    assert clip.metadata["frames_indices"] == expected
    assert clip.frames.shape == (len(expected), 16, 32, 3) and clip.size == (32, 16)
    assert [np.unique(frame).tolist() for frame in clip.frames] == [[4 * number] for number in expected]
    assert (clip.metadata["fps"], clip.metadata["total_num_frames"]) == (fps, frames)
    assert clip.metadata["duration"] == frames / fps


def test_frames_of_any_rate(tmp_path):
    clip = open_clip(save_clip(tmp_path / "a.mkv", 12, 24), max_frames=4, fps=None)
    assert clip.metadata["frames_indices"] == [1, 4, 7, 10]
    assert len(open_clip(tmp_path / "a.mkv", max_frames=99, fps=None).frames) == 12


def test_a_clip_is_known_by_its_ending(tmp_path):
    assert is_clip("a.MP4") and is_clip(tmp_path / "b.webm")
    assert not is_clip("a.png") and not is_clip(b"a.mp4") and not is_clip(np.zeros((2, 2)))


def test_what_is_no_clip_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "text.mp4").write_text("no video")
    whole = save_clip(tmp_path / "whole.mkv", 8)
    (tmp_path / "cut.mkv").write_bytes(whole.read_bytes()[:200])
    for name, message in [
        ("none.mp4", "no video file at .*none.mp4"),
        ("text.mp4", "cannot be decoded as a video"),
        ("cut.mkv", "cannot be decoded|no frames|does not say how long"),
    ]:
        with pytest.raises(FoveateError, match=message):
            open_clip(tmp_path / name)
    monkeypatch.setattr(clips, "MAX_PIXELS", 4 * 32 * 16 - 1)
    with pytest.raises(FoveateError, match="4 frames of 32 x 16 pixels are above the limit"):
        open_clip(whole)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(FoveateError, match=r"pip install 'foveate\[video\]'"):
        open_clip(whole)
