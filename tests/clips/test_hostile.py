"""Damaged video files end in frames or in one sentence, in bounded time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from foveate import FoveateError
from foveate.clips import ClipLimits, open_clip
from tests.video_files import save_frames

av = pytest.importorskip("av")

CODECS = {"mp4": "mpeg4", "mkv": "mpeg4", "avi": "mpeg4", "mpg": "mpeg1video", "webm": "libvpx"}


@pytest.mark.parametrize("ending", CODECS)
def test_damaged_files(ending: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (30, 16, 32, 3), dtype=np.uint8)
    data = save_frames(tmp_path / f"a.{ending}", pixels, 25, codec=CODECS[ending], keyframes=5).read_bytes()
    index = max(data.find(b"moov"), 0)  # where MP4 says what is where
    refusals = []
    level = av.logging.get_level()
    av.logging.set_level(av.logging.PANIC)
    try:
        for number in range(60):
            damaged = bytearray(data)
            for start in (0, index):
                for place in random.integers(start, min(start + 1500, len(data)), 1 + number % 8):
                    damaged[place] = random.integers(256)
            end = len(data) if number % 4 else int(random.integers(1, len(data)))
            try:
                clip = open_clip(bytes(damaged[:end]), max_frames=4, limits=ClipLimits(decode_seconds=5))
                assert 1 <= len(clip.frames) <= 4
            except FoveateError as error:
                refusals.append(str(error))
    finally:
        av.logging.set_level(level)
    assert refusals and all(len(text) < 400 and "\n" not in text for text in refusals)
