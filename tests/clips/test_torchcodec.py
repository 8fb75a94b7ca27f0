"""TorchCodec gives the frames and the times that PyAV gives."""

import numpy as np
import pytest

from foveate import FoveateError
from foveate.clips import ClipLimits, open_clip
from foveate.clips.pyav import PyAVSource
from foveate.clips.torchcodec import TorchCodecSource
from tests.video_files import save_clip, save_frames, save_sound, turn_clockwise

pytest.importorskip("av")
pytest.importorskip("torchcodec", exc_type=(ImportError, RuntimeError))


def test_the_same_frames_and_times(tmp_path):
    left = np.zeros((16, 48, 3), np.uint8)
    left[:, :24] = 250
    varying = [0.0, 0.1, 0.2, 1.0, 2.0, 5.0]
    for path in (
        save_clip(tmp_path / "a.mp4", 60, 25, codec="mpeg4"),
        save_clip(tmp_path / "vfr.mp4", 6, 25, times=varying, codec="mpeg4"),
        turn_clockwise(save_frames(tmp_path / "turned.mp4", [left] * 4, codec="mpeg4")),
    ):
        ours, other = PyAVSource(path, ClipLimits()), TorchCodecSource(path, ClipLimits())
        assert (other.count, other.fps) == (ours.count, pytest.approx(ours.fps))
        assert other.duration == pytest.approx(ours.duration, abs=0.05)
        for times, side in ((None, None), ([0.0, 0.05, 0.15, 1.1, 1.2], None), (None, 12)):
            expected, given = list(ours.read(times, side)), list(other.read(times, side))
            assert [time for time, _ in given] == pytest.approx([time for time, _ in expected])
            for (_, one), (_, two) in zip(expected, given, strict=True):
                assert one.shape == two.shape and np.abs(one.astype(int) - two).max() <= (2 if side is None else 80)
        assert np.abs(open_clip(path, backend="torchcodec").frames.astype(int) - open_clip(path).frames).max() <= 2
    assert open_clip((tmp_path / "a.mp4").read_bytes(), backend="torchcodec").frames.shape == (5, 16, 32, 3)


def test_what_is_no_clip_is_one_sentence(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    for path, message in [
        (tmp_path / "none.mp4", "no video file at"),
        (tmp_path / "text.mp4", "cannot be decoded as a video"),
        (save_sound(tmp_path / "sound.mp4"), "cannot be decoded as a video"),
    ]:
        with pytest.raises(FoveateError, match=message):
            open_clip(path, backend="torchcodec")
