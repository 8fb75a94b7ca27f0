"""Test suite for methods that choose frames of a clip."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pytest
import torch

from foveate.core.errors import FoveateError
from foveate.core.frames import FrameSampler
from foveate.testing.promises import Promises, chosen_budgets

#: What is asked about the clips.
QUESTION = "What happens in the end?"


class RenderedClip:
    """A clip of random colours, which counts the frames that are read at once.

    Args:
        times: Ascending seconds of the frames, from 0 on.
        scenes: How often the colours change.
        size: (height, width).
        seed: Of the colours.
    """

    def __init__(
        self, times: Sequence[float], scenes: int = 3, size: tuple[int, int] = (24, 32), seed: int = 0
    ) -> None:
        random = np.random.default_rng(seed)
        colours = random.integers(0, 256, (scenes, *size, 3), dtype=np.uint8)
        self._times = np.array(times, dtype=np.float64)
        self._frames = [colours[number * scenes // len(times)] for number in range(len(times))]
        self.count = len(times)
        self.fps = (len(times) - 1) / times[-1] if len(times) > 1 else 2.0
        self.duration = float(times[-1]) + 1 / self.fps

    def read(
        self, times: Iterable[float] | None = None, max_side: int | None = None
    ) -> Iterator[tuple[float, np.ndarray]]:
        """Give frames in order; see `FrameSource.read`."""
        places: Iterable[int] = range(self.count)
        if times is not None:
            wanted = np.fromiter(times, dtype=np.float64)
            assert (np.diff(wanted) >= 0).all(), "times ascend"
            places = dict.fromkeys((np.searchsorted(self._times, wanted + 1e-9, "right") - 1).clip(0).tolist())
        step = 1 if max_side is None else -(-max(self._frames[0].shape[:2]) // max_side)
        for place in places:
            yield float(self._times[place]), self._frames[place][::step, ::step]


def clips() -> dict[str, RenderedClip]:
    """Clips of one frame and of many, at even times and at others."""
    uneven = np.cumsum(np.random.default_rng(1).exponential(0.4, 40)) - 0.1
    return {
        "one frame": RenderedClip([0.0], 1),
        "a second": RenderedClip([number / 25 for number in range(25)]),
        "a minute": RenderedClip([number / 2 for number in range(120)], 7),
        "one scene": RenderedClip([number / 4 for number in range(30)], 1),
        "every frame a scene": RenderedClip([float(number) for number in range(12)], 12),
        "uneven": RenderedClip([0.0, *uneven.tolist()], 5),
        "tall and small": RenderedClip([0.0, 0.5, 1.0], 2, (40, 3)),
    }


def _numpy_state() -> list[int]:
    """The global random state of NumPy."""
    return np.random.get_state(legacy=False)["state"]["key"].tolist()  # noqa: NPY002


class FrameSamplerPromises(Promises):
    """Tests that every method that chooses frames must pass, without a model and without a file."""

    def test_frames_ascend_and_are_no_more_than_asked_for(self, method: FrameSampler) -> None:
        """Times lie in the clip, in order, and name between one frame and as many as the budget has."""
        for name, clip in clips().items():
            for count in chosen_budgets(method, 1, 2, 5, clip.count):
                times = method.times(clip, count, QUESTION)
                assert all(0 <= time < clip.duration for time in times), (name, count)
                assert list(times) == sorted(times), (name, count)
                chosen = [time for time, _ in clip.read(times)]
                assert 1 <= len(chosen) <= min(count or clip.count, clip.count), (name, count)

    def test_the_same_twice_and_nothing_else_is_touched(self, method: FrameSampler) -> None:
        """Equal methods choose alike, and leave the global random states alone."""
        (clip, again), (count, *_) = (clips()["uneven"] for _ in range(2)), chosen_budgets(method, 4)
        before = torch.get_rng_state(), _numpy_state()
        assert method.times(clip, count, QUESTION) == method.times(again, count, QUESTION)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert _numpy_state() == before[1]

    def test_a_missing_budget(self, method: FrameSampler) -> None:
        """A budget is asked for, or left to the method, as the method says."""
        if method.budget == "count":
            with pytest.raises(FoveateError, match=f"{method.name} needs a budget"):
                method.times(clips()["a second"], None, QUESTION)
        else:
            assert method.times(clips()["a second"], None, QUESTION)
