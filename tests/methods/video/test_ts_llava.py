"""TS-LLaVA, thumbnails and sampled tokens, against numbers of the authors' code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from foveate.clips import clip_of_frames, open_clip
from foveate.clips.clip import ClipLimits
from foveate.core.errors import FoveateError
from foveate.core.plan import Plan
from foveate.methods.frames.thumbnails import Thumbnails, tile_grid, tiled
from foveate.methods.video.ts_llava import TSLLaVA
from tests.methods.video.clips import clip_of, moving
from tests.video_files import save_frames

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "ts_llava.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["thumbnails"], ids=lambda case: f"{case['tiles']} of {len(case['frames'])}")
def test_thumbnails_of_the_authors_code(case: dict) -> None:
    frames = torch.tensor(case["frames"])
    expected = torch.tensor(case["thumbnails"])
    pixels = frames.permute(0, 2, 3, 1).to(torch.uint8).numpy()
    made, times = Thumbnails(case["tiles"], case["number"]).composed(pixels, range(len(pixels)))
    assert np.array_equal(made[: len(pixels)], pixels) and times[len(pixels) :] == [len(pixels) - 1] * case["number"]
    assert np.array_equal(made[len(pixels) :], expected.round().permute(0, 2, 3, 1).numpy())
    if case["number"] == 1:
        shown = np.rint(np.linspace(0, len(frames) - 1, case["tiles"])).astype(int)
        torch.testing.assert_close(tiled(frames[shown].float()), expected[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", GOLDEN["samples"], ids=lambda case: str(case["count"]))
def test_samples_of_the_authors_code(case: dict) -> None:
    kept = TSLLaVA()(clip_of(torch.zeros(case["tokens"], 1), (case["tokens"] // 4, 2, 2)), case["count"]).indices
    if "kept" in case:
        assert kept.tolist() == case["kept"]
    else:
        assert (kept[:24].tolist(), kept[-24:].tolist(), int(kept.sum())) == (case["first"], case["last"], case["sum"])


@pytest.mark.parametrize(("place", "whole"), [("after", range(30, 36)), ("before", range(6))])
def test_thumbnails_stay_whole(place: str, whole: range) -> None:
    clip = clip_of(moving((6, 2, 3), 4), (6, 2, 3))
    kept = TSLLaVA(thumbnails=1, place=place)(clip, 16).indices.tolist()
    others = [round(step * 29 / 9) + (0 if place == "after" else 6) for step in range(10)]
    assert kept == sorted([*whole, *others])
    with pytest.raises(FoveateError, match="the thumbnails alone have 6 tokens"):
        TSLLaVA(thumbnails=1)(clip, 6)
    with pytest.raises(FoveateError, match="the clip has 6 frames, and 6 are said to be thumbnails"):
        TSLLaVA(thumbnails=6)(clip, 8)


def test_every_token_comes_once_where_steps_are_almost_one() -> None:
    clip = clip_of(torch.zeros(60000, 1), (60, 20, 50))
    assert len(TSLLaVA()(clip, 59999).indices.unique()) == 59999


def test_tiles_are_in_the_order_of_the_frames() -> None:
    assert [tile_grid(count) for count in (1, 2, 4, 6, 7, 8, 9)] == [
        (1, 1),
        (2, 1),
        (2, 2),
        (3, 2),
        (7, 1),
        (4, 2),
        (3, 3),
    ]
    frames = np.arange(6, dtype=np.uint8)[:, None, None, None].repeat(10, 1).repeat(5, 2).repeat(3, 3)
    (thumbnail,), times = Thumbnails(place="alone").composed(frames, range(6))
    assert times == [0] and thumbnail[[0, 3, 6, 9]][:, [0, 1, 2, 4], 0].tolist() == [
        [0, 0, 1, 1],
        [2, 2, 3, 3],
        [4, 4, 5, 5],
        [4, 4, 5, 5],
    ]


def test_a_plan_makes_thumbnails_where_it_opens_a_clip(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (16, 24, 32, 3), dtype=np.uint8)
    path = save_frames(tmp_path / "a.mkv", frames, 8)
    step = Plan.of("thumbnails(tiles=4, copies=2):8 + ts-llava(thumbnails=1):50%").frame_step
    clip = open_clip(path, sampler=step)
    chosen = clip.frames[:8]
    assert len(clip.frames) == 10 and np.array_equal(clip.frames[8], clip.frames[9])
    assert clip.timestamps[-3:] == (clip.timestamps[7],) * 3 and len(clip.metadata["frames_indices"]) == 10
    assert np.array_equal(clip.frames[9], Thumbnails(tiles=4).composed(chosen, range(8))[0][8])
    alone = clip_of_frames(
        list(chosen), clip.timestamps[:8], sampler=Plan.of("thumbnails(tiles=4,place=alone):8").frame_step
    )
    assert len(alone.frames) == 2 and alone.timestamps == (0.0, clip.timestamps[4] - clip.timestamps[0])
    with pytest.raises(FoveateError, match="at most 9 frames of a clip may be read here, not 10"):
        open_clip(path, sampler=step, limits=ClipLimits(frames=9))


def test_arguments_that_mean_nothing() -> None:
    frames = np.zeros((3, 2, 2, 3), dtype=np.uint8)
    for make, message in [
        (lambda: Thumbnails(tiles=0), "tiles, number and copies are at least 1"),
        (lambda: Thumbnails(place="behind"), "place is after, before or alone"),
        (
            lambda: Thumbnails().composed(frames, range(3)),
            "thumbnails of 6 tiles need as many frames, and the clip has 3",
        ),
        (
            lambda: Thumbnails(tiles=3).composed(frames, range(3)),
            "frames of 2 x 2 pixels are too small for 1 x 3 tiles",
        ),
        (lambda: TSLLaVA(thumbnails=-1), "thumbnails is a number of frames"),
        (lambda: TSLLaVA(place="alone"), "place is after or before"),
    ]:
        with pytest.raises(FoveateError, match=message):
            make()
