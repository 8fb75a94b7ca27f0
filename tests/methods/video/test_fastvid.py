"""FastVID against numbers of the authors' code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from foveate.core.errors import FoveateError
from foveate.core.tokens import EncoderSpec, Need, VisualTokens
from foveate.methods.video.fastvid import FastVID
from tests.methods.video.clips import clip_of, moving

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "fastvid.json").read_text())
TOWER = EncoderSpec(12, True)
ARGUMENTS = ("segments", "threshold", "context", "interval", "beta")


def attended(features: object, clip: list[int] | tuple[int, int, int], attention: object) -> VisualTokens:
    measured = {Need("cls_attention", 11, substitute=True): torch.as_tensor(attention)}
    return clip_of(features, clip, measured=measured, tower=TOWER)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: str(case["clip"]))
def test_equals_the_authors_code(case: dict) -> None:
    method = FastVID(**{name: case[name] for name in ARGUMENTS})
    tokens = attended(case["features"], case["clip"], case["attention"])
    selection = method(tokens, len(case["kept"]))
    assert selection.indices.tolist() == case["kept"]
    assert selection.features is not None
    torch.testing.assert_close(selection.features, torch.tensor(case["rows"]), rtol=1e-4, atol=1e-5)


def random_clip(clip: tuple[int, int, int], seed: int = 0) -> VisualTokens:
    size = clip[0] * clip[1] * clip[2]
    attention = torch.rand(size, generator=torch.Generator().manual_seed(seed))
    return attended(moving(clip, 6, seed), clip, attention)


@pytest.mark.parametrize("count", [1, 7, 60, 95, 107])
def test_any_budget_is_met_and_every_frame_keeps_its_share(count: int) -> None:
    tokens = random_clip((9, 3, 4))
    selection = FastVID(segments=3)(tokens, count)
    selection.check(108)
    assert len(selection) == count
    if count >= 95:  # the anchor frame of a segment has no tokens for all of its share: others stay as they are
        assert (selection.indices // 12).bincount(minlength=9).min() >= 8


def test_rows_are_made_again_with_gradients() -> None:
    tokens = random_clip((6, 2, 4))
    selection = FastVID(segments=2, context=1.0)(tokens, 12)
    assert selection.remade is not None and selection.features is not None
    leaf = tokens.features.clone().requires_grad_()
    rows = selection.remade(leaf)
    assert torch.equal(rows, selection.features)
    rows.square().sum().backward()
    assert leaf.grad is not None and bool((leaf.grad.abs().sum(dim=1) > 0).all())


def test_frames_of_one_shot_are_one_segment() -> None:
    frames = torch.ones(6, 4, 3)
    frames[4:] = -1
    means = frames.mean(dim=1)
    assert list(FastVID(segments=1)._segments(means)) == [(0, 4), (4, 6)]
    assert list(FastVID(segments=4)._segments(means)) == [(0, 1), (1, 2), (2, 4), (4, 6)]
    assert list(FastVID(segments=9)._segments(means[:1])) == [(0, 1)]


def test_arguments_that_mean_nothing() -> None:
    for arguments in ({"segments": 0}, {"interval": 0}, {"context": 1.5}, {"beta": -1.0}):
        with pytest.raises(FoveateError, match="fastvid: "):
            FastVID(**arguments)
