"""HoliTom against numbers of the authors' code."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.core.tokens import EncoderSpec, Need, VisualTokens
from foveate.methods.video.holitom import HoliTom, static_windows
from tests.methods.video.clips import clip_of, moving

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "holitom.json").read_text())


def attended(features: object, clip: list[int] | tuple[int, int, int], attention: object) -> VisualTokens:
    measured = {Need("cls_attention", 11, substitute=True): torch.as_tensor(attention)}
    return clip_of(features, clip, measured=measured, tower=EncoderSpec(12, True))


def in_order(rows: Tensor) -> Tensor:
    """The rows by their place along one direction."""
    return rows[(rows @ torch.arange(1.0, rows.shape[1] + 1).sqrt()).argsort()]


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"{case['clip']} {case['context']}")
def test_equals_the_authors_code(case: dict) -> None:
    """The same windows and rows; theirs are ordered by window, static ones first."""
    features = torch.tensor(case["features"])
    frames = features.view(case["clip"][0], -1, features.shape[1])
    same = torch.cosine_similarity(frames[:-1], frames[1:], dim=-1) > case["threshold"]
    assert static_windows(same, case["window"]) == [tuple(window) for window in case["windows"]]
    method = HoliTom(case["threshold"], case["context"], window=case["window"])
    selection = method(attended(case["features"], case["clip"], case["attention"]), len(case["rows"]))
    torch.testing.assert_close(in_order(selection.features), in_order(torch.tensor(case["rows"])), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_windows_save_the_most(seed: int) -> None:
    same = torch.rand(6, 5, generator=torch.Generator().manual_seed(seed)) < 0.7
    saved = {
        windows: sum((b - a - 1) * int(same[a : b - 1].all(0).sum()) for a, b in windows if b - a > 1)
        for cuts in itertools.product([False, True], repeat=6)
        for stops in [[frame + 1 for frame in range(6) if cuts[frame]] + [7]]
        for windows in [tuple(itertools.pairwise([0, *stops]))]
    }
    assert saved[tuple(static_windows(same, 7))] == max(saved.values()) > 0
    assert all(stop - start <= 2 for start, stop in static_windows(same, 2))


@pytest.mark.parametrize("count", [1, 5, 30, 80, 107])
def test_a_budget_is_met_exactly(count: int) -> None:
    attention = torch.rand(108, generator=torch.Generator().manual_seed(0))
    selection = HoliTom(context=0.3)(attended(moving((9, 3, 4), 6, still=0.8), (9, 3, 4), attention), count)
    selection.check(108)
    assert len(selection) == count and sorted(set(selection.assignment.tolist()) - {-1}) == list(range(count))


def test_a_static_clip_is_one_frame() -> None:
    frame = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    tokens = attended(frame.repeat(4, 1), (4, 3, 4), torch.ones(48))
    selection = HoliTom()(tokens, 12)
    assert selection.indices.tolist() == list(range(12))
    torch.testing.assert_close(selection.features, frame)
    assert HoliTom()(tokens, 20).indices.tolist()[:12] == list(range(12))


def test_arguments_that_mean_nothing() -> None:
    for arguments, message in [
        ({"context": 1.5}, "are shares"),
        ({"beta": -0.1}, "are shares"),
        ({"window": 0}, "window"),
    ]:
        with pytest.raises(FoveateError, match=f"holitom: .*{message}"):
            HoliTom(**arguments)
