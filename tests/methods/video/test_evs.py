"""EVS against numbers of the authors' code in vLLM."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from foveate.methods.video.evs import EVS
from tests.methods.video.clips import clip_of, moving

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "evs.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: str(case["clip"]))
def test_equals_the_authors_code(case: dict) -> None:
    frames, rows, columns = case["clip"]
    count = max(rows * columns, int(frames * rows * columns * (1 - case["rate"])))
    selection = EVS()(clip_of(case["features"], case["clip"]), count)
    assert selection.indices.tolist() == case["kept"]


def test_the_first_frame_stays_whole_and_static_frames_go() -> None:
    features = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    features[1] = features[0]
    kept = EVS()(clip_of(features.flatten(0, 1), (3, 2, 2)), 8).indices.tolist()
    assert kept == [0, 1, 2, 3, 8, 9, 10, 11]


def test_less_than_one_frame_is_spread_over_the_first() -> None:
    clip = clip_of(moving((3, 4, 4), 5), (3, 4, 4))
    assert EVS()(clip, 4).indices.tolist() == [0, 2, 8, 10]
    assert EVS()(clip, 16).indices.tolist() == list(range(16))
