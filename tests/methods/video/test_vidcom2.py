"""VidCom2 against numbers of the authors' code, and of vLLM's where numbers are corrected to the budget."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from foveate.core.errors import FoveateError
from foveate.methods.video.vidcom2 import VidCom2
from tests.methods.video.clips import clip_of

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "vidcom2.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["cases"] + GOLDEN["rounded"], ids=lambda case: str(case["clip"]))
def test_equals_the_authors_code(case: dict) -> None:
    assert VidCom2()(clip_of(case["features"], case["clip"]), len(case["kept"])).indices.tolist() == case["kept"]


def test_an_unusual_frame_keeps_more() -> None:
    features = 1 + torch.randn(6, 9, 8, generator=torch.Generator().manual_seed(7)) / 10
    features[3] *= -1
    kept = VidCom2()(clip_of(features.flatten(0, 1), (6, 3, 3)), 18).indices // 9
    assert kept.bincount(minlength=6)[3] > 4


def test_arguments_that_mean_nothing() -> None:
    with pytest.raises(FoveateError, match="temperature is above 0"):
        VidCom2(temperature=0)
    with pytest.raises(FoveateError, match="channels is a share"):
        VidCom2(channels=0)
