"""Clips: which frames of a file are read, at which times, what is decoded for them, and what is refused."""

import io
import sys
import tracemalloc

import numpy as np
import pytest

from foveate import FoveateError
from foveate.clips import ClipLimits, clip_of_frames, is_clip, open_clip
from foveate.clips.pyav import PyAVSource
from foveate.clips.writing import write_clip
from foveate.core.plan import Budget, Step
from foveate.methods.frames.uniform_frames import UniformFrames
from tests.video_files import save_clip, save_frames, save_sound, turn_clockwise

av = pytest.importorskip("av")


def noise(count, size=(32, 16)):
    """Frames that no codec makes small."""
    return np.random.default_rng(0).integers(0, 256, (count, *size[::-1], 3), dtype=np.uint8)


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
    path = save_clip(tmp_path / "a.mkv", frames, fps)
    clip = open_clip(path, max_frames=most)
    assert clip.metadata["frames_indices"] == expected
    assert clip.timestamps == pytest.approx([number / fps for number in expected], abs=1e-3)
    assert clip.frames.shape == (len(expected), 16, 32, 3) and clip.size == (32, 16)
    assert [np.unique(frame).tolist() for frame in clip.frames] == [[4 * number] for number in expected]
    assert (clip.metadata["fps"], clip.metadata["total_num_frames"]) == (fps, frames)
    assert clip.metadata["duration"] == pytest.approx(frames / fps, abs=1e-3)
    assert np.array_equal(open_clip(path.read_bytes(), max_frames=most).frames, clip.frames)


def test_frames_of_any_rate(tmp_path):
    clip = open_clip(save_clip(tmp_path / "a.mkv", 12, 24), max_frames=4, fps=None)
    assert clip.metadata["frames_indices"] == [1, 4, 7, 10]
    assert len(open_clip(tmp_path / "a.mkv", max_frames=99, fps=None).frames) == 12


def test_times_are_those_of_the_file(tmp_path):
    """A frame is shown until the next one: where the rate varies, even times name other frames than even numbers."""
    times = [0.0, 0.1, 0.2, 1.0, 2.0, 5.0]
    clip = open_clip(save_clip(tmp_path / "a.mp4", 6, 25, times=times, codec="mpeg4"), max_frames=5, fps=None)
    assert clip.timestamps == pytest.approx([0.2, 1.0, 2.0])  # shown at 0.5, 1.5 and from 2.5 on
    fps, indices = clip.metadata["fps"], clip.metadata["frames_indices"]
    assert [index / fps for index in indices] == pytest.approx(clip.timestamps)
    source = PyAVSource(tmp_path / "a.mp4", ClipLimits())
    assert [time for time, _ in source.read()] == pytest.approx(times)
    assert [round(time, 3) for time, _ in source.read([0.05, 0.06, 0.15, 4.9, 7.0])] == [0.0, 0.1, 2.0, 5.0]


@pytest.mark.parametrize(
    ("ending", "codec", "most"),
    # Of 400: up to ten from each keyframe on. MPEG streams have no index.
    [("mp4", "mpeg4", 60), ("avi", "mpeg4", 60), ("mkv", "mpeg4", 60), ("mpg", "mpeg1video", 400)],
)
def test_few_frames_of_a_long_file_are_reached_by_keyframes(tmp_path, ending, codec, most, monkeypatch):
    path = save_clip(tmp_path / f"a.{ending}", 400, 25, codec=codec, keyframes=10)
    decoded = []
    monkeypatch.setattr(
        PyAVSource,
        "_decoded",
        lambda self, container, stream: (decoded.append(frame.time) or frame for frame in container.decode(stream)),
    )
    clip = open_clip(path, max_frames=4, fps=None)
    assert clip.metadata["frames_indices"] == [50, 150, 250, 350]
    assert np.abs(clip.frames[..., 0].mean((1, 2)) - [4 * n % 256 for n in (50, 150, 250, 350)]).max() < 8
    assert len(decoded) <= most
    every = list(PyAVSource(path, ClipLimits()).read())
    assert len(every) == 400
    for time, frame in zip(clip.timestamps, clip.frames, strict=True):
        assert any(np.array_equal(frame, other) for shown, other in every if shown == time)


def test_one_keyframe_for_all_is_decoded_once(tmp_path, monkeypatch):
    path = save_clip(tmp_path / "a.mp4", 200, 25, codec="mpeg4", keyframes=600)
    decoded = []
    monkeypatch.setattr(
        PyAVSource,
        "_decoded",
        lambda self, container, stream: (decoded.append(frame.time) or frame for frame in container.decode(stream)),
    )
    assert len(open_clip(path, max_frames=20, fps=None).frames) == 20
    assert len(decoded) <= 202


def test_files_that_do_not_say_how_long_they_are(tmp_path):
    for path in (
        save_clip(tmp_path / "a.mkv", 40, 4, live="1"),
        save_clip(tmp_path / "a.webm", 40, 4, codec="libvpx", live="1"),
    ):
        with av.open(str(path)) as container:
            assert not container.duration and not container.streams.video[0].duration
        clip = open_clip(path, max_frames=4)
        assert clip.metadata["frames_indices"] == [5, 15, 25, 35] and clip.metadata["duration"] == 10


@pytest.mark.parametrize(("ending", "codec"), [("mkv", "mpeg4"), ("webm", "libvpx"), ("mp4", "mpeg4")])
def test_video_may_begin_late(tmp_path, ending, codec):
    """The header of Matroska says how long its time axis is, from 0 on; times of a clip begin with its first frame."""
    early, times = ([start + number / 4 for number in range(40)] for start in (0, 20))
    expected, clip = (
        open_clip(save_clip(tmp_path / f"a.{ending}", 40, 25, times=own, codec=codec), max_frames=4, fps=None)
        for own in (early, times)
    )
    # FFmpeg 7 says of an MP4 that begins late that its last frame is as long as the others.
    longer = ending == "mp4" and av.library_versions["libavformat"] < (62,)
    close = 0.25 if longer else 1e-3
    assert clip.timestamps == pytest.approx(expected.timestamps, abs=close) and expected.timestamps[0] == 1
    assert clip.metadata["duration"] == pytest.approx(expected.metadata["duration"], abs=close)
    assert longer or np.array_equal(clip.frames, expected.frames)
    if ending == "mkv":
        save_frames(tmp_path / "b.mkv", noise(40), 25, times=times, codec=codec)
        data = (tmp_path / "b.mkv").read_bytes()
        with pytest.raises(
            FoveateError, match=r"cut off: its header says (30.0|29.8) s, and its data end after 2\d\.\d s"
        ):
            open_clip(data[: len(data) // 2])


def test_times_of_slow_clips_are_exact():
    """Numbers of frames are whole where the rate is even; a tenth of a step of ten seconds is a second."""
    clip = clip_of_frames(noise(4), [0, 10.9, 20, 30])
    assert clip.metadata["frames_indices"] == pytest.approx([0, 1.09, 2, 3])
    clip = clip_of_frames(noise(4), [0, 10.001, 20, 30])
    assert clip.metadata["frames_indices"] == [0, 1, 2, 3]


def test_frames_are_upright(tmp_path):
    left = np.zeros((16, 48, 3), np.uint8)
    left[:, :24] = 250
    path = save_frames(tmp_path / "a.mp4", [left] * 4, codec="mpeg4")
    assert open_clip(path).size == (48, 16)
    clip = open_clip(turn_clockwise(path))
    assert clip.size == (16, 48) and (clip.metadata["width"], clip.metadata["height"]) == (16, 48)
    assert clip.frames[:, :20].min() > 200 and clip.frames[:, 28:].max() < 50  # what was on the left is at the top


def test_memory_is_that_of_the_chosen_frames(tmp_path):
    peaks = []
    for seconds in (4, 40):
        path = save_clip(tmp_path / f"{seconds}.mp4", 25 * seconds, 25, (128, 64), codec="mpeg4")
        tracemalloc.start()
        open_clip(path, max_frames=4)
        sum(1 for _ in PyAVSource(path, ClipLimits()).read())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_given_frames():
    frames = noise(6)
    clip = clip_of_frames(frames, [3.0, 3.1, 3.2, 4.0, 5.0, 8.0])
    assert np.array_equal(clip.frames, frames) and clip.timestamps == pytest.approx([0, 0.1, 0.2, 1, 2, 5])
    assert clip_of_frames(frames).timestamps == (0, 0.5, 1, 1.5, 2, 2.5)
    assert clip_of_frames(frames[:1]).metadata["duration"] == 0.5
    numbers = iter(range(6))
    assert np.array_equal(clip_of_frames(iter(frames), numbers).frames, frames)  # ty: ignore[invalid-argument-type]
    for wrong, message in [
        (([], None), "no frames"),
        (([*frames, noise(1, (8, 8))[0]], None), "have several: 8 x 8, 32 x 16; resize"),
        ((frames, [0, 1]), "6 ascending numbers"),
        ((frames, [0, 1, 2, 3, 3, 4]), "6 ascending numbers"),
        ((frames, "abcdef"), "6 ascending numbers"),
        ((frames, [None] * 6), "6 ascending numbers"),
        ((frames, 3), "6 ascending numbers"),
        ((3, None), "frames are a list of images, not int"),
        (([frame / 255 for frame in frames], None), r"frame 0 is float64 \(16, 32, 3\); foveate.images.open_image"),
        (([frames[0], frames[1][..., 0]], None), r"frame 1 is uint8 \(16, 32\)"),
        (([frame.transpose(2, 0, 1) for frame in frames], None), r"frame 0 is uint8 \(3, 16, 32\)"),
        ((["a.png"], None), "frame 0 is str"),
    ]:
        with pytest.raises(FoveateError, match=message):
            clip_of_frames(*wrong)


def test_a_clip_is_known_by_its_ending(tmp_path):
    assert is_clip("a.MP4") and is_clip(tmp_path / "b.webm") and is_clip(clip_of_frames(noise(1)))
    assert not is_clip("a.png") and not is_clip(b"a.mp4") and not is_clip(np.zeros((2, 2)))


def test_what_is_no_clip_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    whole = save_frames(tmp_path / "whole.mp4", noise(80), 8, codec="mpeg4", movflags="faststart")
    (tmp_path / "cut.mp4").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    late = save_frames(tmp_path / "late.mp4", noise(80), 8, codec="mpeg4")  # its index is at the end
    (tmp_path / "no_index.mp4").write_bytes(late.read_bytes()[: late.stat().st_size // 2])
    matroska = save_frames(tmp_path / "whole.mkv", noise(80), 8)
    (tmp_path / "cut.mkv").write_bytes(matroska.read_bytes()[: matroska.stat().st_size // 2])
    save_sound(tmp_path / "sound.mp4")
    save_frames(tmp_path / "nothing.mkv", [])
    for name, message in [
        ("none.mp4", "no video file at .*none.mp4"),
        ("x" * 5000 + ".mp4", "cannot be decoded as a video: File name too long"),
        ("text.mp4", "cannot be decoded as a video"),
        ("empty.mp4", "cannot be decoded as a video"),
        ("cut.mp4", r"is cut off: its header says 10.0 s, and its data end after [2-5]\.\d s"),
        ("no_index.mp4", "cannot be decoded as a video"),
        ("cut.mkv", r"is cut off: its header says 10.0 s, and its data end after [2-5]\.\d s"),
        ("sound.mp4", "has no video"),
        ("nothing.mkv", "cannot be decoded|no video"),
    ]:
        with pytest.raises(FoveateError, match=message) as caught:
            open_clip(tmp_path / name)
        assert len(str(caught.value)) < 600
    with pytest.raises(FoveateError, match=r"20 frames of 32 x 16 pixels are above the limit of 0\.00512 megapixels"):
        open_clip(whole, limits=ClipLimits(pixels=10 * 32 * 16))
    with pytest.raises(FoveateError, match="have 32 x 16 pixels, above the limit"):
        open_clip(whole, limits=ClipLimits(frame_pixels=511))
    with pytest.raises(FoveateError, match="takes 10.0 s, and a clip may take 9 s here"):
        open_clip(whole, limits=ClipLimits(seconds=9))
    with pytest.raises(FoveateError, match="at most 19 frames of a clip may be read here, not 20"):
        open_clip(whole, limits=ClipLimits(frames=19))
    with pytest.raises(FoveateError, match="takes longer than 0 s; send a shorter clip"):
        open_clip(whole, limits=ClipLimits(decode_seconds=0))
    with pytest.raises(FoveateError, match="backend must be one of pyav, torchcodec"):
        open_clip(whole, backend="opencv")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(FoveateError, match=r"pip install 'foveate\[video\]'"):
        open_clip(whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"times": [3.0, 1.0]}, "times must be ascending numbers of seconds from the first frame, at least one"),
        ({"times": []}, "times must be ascending"),
        ({"times": [-1.0, 1.0]}, "times must be ascending"),
        ({"times": [float("nan")]}, "times must be ascending"),
        ({"times": "ab"}, "times must be ascending"),
        ({"times": 3}, "times must be ascending"),
        ({"max_frames": 0}, "max_frames is a whole number of frames from 1 on, not 0"),
        ({"max_frames": 2.5}, "max_frames is a whole number"),
        ({"fps": 0}, "fps is a number of frames per second above 0, or None, not 0"),
        ({"fps": float("nan")}, "fps is a number"),
        ({"fps": "2"}, "fps is a number"),
        ({"sampler": "uniform-frames:4"}, "a sampler is a method that chooses frames, .*not 'uniform-frames:4'"),
        ({"source": None}, "from the path of a video file or its bytes, not NoneType"),
        ({"source": io.BytesIO()}, "from the path of a video file or its bytes, not BytesIO"),
    ],
)
def test_impossible_arguments(tmp_path, options, message):
    path = save_clip(tmp_path / "a.mp4", 12, codec="mpeg4")
    with pytest.raises(FoveateError, match=message):
        open_clip(**{"source": path, **options})
    assert len(open_clip(path, times=(time for time in (0.5, 1.0, 1.0, 99.0))).frames) == 3


def test_a_sampler_must_name_ascending_times(tmp_path):
    class Backwards(UniformFrames):
        def times(self, clip, count, question):
            return super().times(clip, count, question)[::-1]

    path = save_clip(tmp_path / "a.mp4", 12, codec="mpeg4")
    with pytest.raises(FoveateError, match="times of uniform-frames must be ascending"):
        open_clip(path, sampler=Step(Backwards(), Budget(4)))


def test_a_file_of_any_name_opens_no_other_file(tmp_path):
    """FFmpeg knows playlists by their content, whatever their name is."""
    real = save_clip(tmp_path / "real.mp4", 8, codec="mpeg4")
    playlists = {
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile://{real}\n#EXT-X-ENDLIST\n",
        "concat": f"ffconcat version 1.0\nfile {real.name}\n",
        "dash": '<?xml version="1.0"?><MPD profiles="urn:mpeg:dash:profile:isoff-live:2011"></MPD>',
    }
    for name, text in playlists.items():
        (tmp_path / f"{name}.mp4").write_text(text)
        for source in (tmp_path / f"{name}.mp4", text.encode()):
            with pytest.raises(FoveateError, match="cannot be decoded as a video"):
                open_clip(source)


def test_a_clip_that_cannot_be_written_leaves_what_was_there(tmp_path):
    """No half file remains where frames fail in the middle, and none where there was none."""
    path, frame = tmp_path / "clip.mp4", np.zeros((16, 32, 3), np.uint8)

    def failing():
        yield frame
        raise ValueError("no more frames")

    with pytest.raises(ValueError, match="no more frames"):
        write_clip(path, failing(), 4)
    assert not list(tmp_path.iterdir())
    write_clip(path, [frame] * 4, 4)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="no more frames"):
        write_clip(path, failing(), 4)
    assert [path] == list(tmp_path.iterdir()) and path.read_bytes() == before
    with pytest.raises(FoveateError, match="could not be written"):
        write_clip(tmp_path / "no-such-folder" / "clip.mp4", [frame], 4)
