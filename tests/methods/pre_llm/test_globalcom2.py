"""GlobalCom2 against a loop from the paper and against numbers of the authors' code."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from foveate.core.errors import FoveateError
from foveate.core.pre_llm import divide
from foveate.core.tokens import Need, VisualTokens
from foveate.methods.pre_llm.globalcom2 import GlobalCom2, importance
from foveate.methods.shared.tiles import apportion, resampled
from foveate.testing.visual_tokens import CLIP, PLAIN, measure, plain, tied, tiled

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "globalcom2.json").read_text())
NEED = Need("cls_logits", 23)


def scored(tokens: VisualTokens, scores: list[list[float]]) -> VisualTokens:
    values = torch.zeros(len(tokens))
    for crop, row in zip(tokens.crops, scores, strict=True):
        values[crop.present] = torch.tensor(row)[crop.index >= 0]
    return replace(tokens, measured={NEED: values})


def interpolated(view: list[list[float]], u: float, v: float) -> float:
    """Bilinear, u and v from 0 to 1 across and down, the border continued."""
    rows, columns = len(view), len(view[0])
    x, y = min(max(u * columns - 0.5, 0), columns - 1), min(max(v * rows - 0.5, 0), rows - 1)
    left, upper = min(int(x), columns - 1), min(int(y), rows - 1)
    right, lower = min(left + 1, columns - 1), min(upper + 1, rows - 1)
    a, b = x - left, y - upper
    above = (1 - a) * view[upper][left] + a * view[upper][right]
    return (1 - b) * above + b * ((1 - a) * view[lower][left] + a * view[lower][right])


def by_the_paper(tokens: VisualTokens, count: int, temperature: float) -> list[int]:
    scores = tokens.measured[NEED].tolist()
    thumbnail, *tiles = tokens.crops
    side, columns = thumbnail.grid
    view = [[scores[r * columns + c] for c in range(columns)] for r in range(side)]
    sizes = [len(tile.present) for tile in tiles]
    whole, rest = divide(count, [side * columns, sum(sizes)])
    sums = []
    for tile in tiles:
        left, upper, right, lower = tile.box
        inside = [
            view[r][c]
            for r in range(side)
            for c in range(columns)
            if left <= (c + 0.5) / columns < right and upper <= (r + 0.5) / side < lower
        ]
        sums.append(sum(inside))
    powers = [math.exp((z - max(sums)) / temperature) for z in sums]
    factors = [1 + power / sum(powers) - 1 / len(tiles) for power in powers]
    shares = apportion(rest, [size * factor for size, factor in zip(sizes, factors, strict=True)], sizes)
    kept = sorted(range(side * columns), key=lambda i: -scores[i])[:whole]
    for tile, share in zip(tiles, shares, strict=True):
        left, upper, right, lower = tile.box
        own, guide = {}, {}
        for cell, place in enumerate(tile.index.tolist()):
            if place >= 0:
                r, c = divmod(cell, tile.grid.columns)
                own[place] = scores[place]
                u = left + (right - left) * (c + 0.5) / tile.grid.columns
                v = upper + (lower - upper) * (r + 0.5) / tile.grid.rows
                guide[place] = interpolated(view, u, v)
        norms = [math.sqrt(sum(x * x for x in part.values())) or 1.0 for part in (own, guide)]
        kept += sorted(own, key=lambda i: -(own[i] / norms[0] + guide[i] / norms[1]))[:share]
    return sorted(kept)


@pytest.mark.parametrize(
    ("side", "layout", "cut"), [(4, (2, 2), (0, 0)), (6, (2, 2), (2, 0)), (5, (1, 3), (0, 2)), (3, (2, 1), (2, 0))]
)
@pytest.mark.parametrize("temperature", [10.0, 0.5])
@pytest.mark.parametrize("newlines", [True, False])
def test_paper(side: int, layout: tuple[int, int], cut: tuple[int, int], temperature: float, newlines: bool):
    method = GlobalCom2(temperature)
    tokens = measure(method, tiled(side, layout, cut, newlines), seed=side)
    ordinary = sum(len(crop.present) for crop in tokens.crops)
    for count in (1, ordinary // 4, ordinary // 2, ordinary - 1):
        chosen = method(tokens, count)
        chosen.check(len(tokens))
        assert chosen.indices.tolist() == by_the_paper(tokens, count, temperature)


@pytest.mark.parametrize("case", GOLDEN["cases"])
def test_authors_code(case: dict):
    tokens = tiled(case["side"], tuple(case["layout"]), tuple(case["cut"]), newlines=False)
    tokens = scored(tokens, case["scores"])
    chosen = set(GlobalCom2(reference=True)(tokens, case["count"]).indices.tolist())
    for crop, kept in zip(tokens.crops, case["kept"], strict=True):
        assert [i for i, place in enumerate(crop.index.tolist()) if place in chosen] == kept
    if max(case["cut"]) == 0:  # tiles and an even division of the thumbnail are the same
        side, (rows, columns) = case["side"], case["layout"]
        parts = torch.tensor(case["scores"][0]).view(rows, side // rows, columns, side // columns).sum(dim=(1, 3))
        assert importance(parts.flatten().tolist(), 10.0) == pytest.approx(case["factors"], abs=1e-5)


def test_an_even_thumbnail_divides_evenly():
    tokens = measure(GlobalCom2(), tiled(4, (2, 2), (0, 0), newlines=False))
    tokens.measured[NEED][:16] = 0.7
    chosen = GlobalCom2()(tokens, 20).indices
    assert [int(torch.isin(crop.index, chosen).sum()) for crop in tokens.crops] == [4, 4, 4, 4, 4]


def test_factors_have_mean_one_and_rise_with_the_scores():
    factors = importance([3.0, 100.0, -5.0, 30.0], 10.0)
    assert sum(factors) == pytest.approx(4)
    assert sorted(range(4), key=factors.__getitem__) == [2, 0, 3, 1]
    assert importance([0.2], 10.0) == [1.0]


def test_what_the_thumbnail_knows_at_a_tile_is_interpolation_of_the_whole():
    tokens = tiled(6, (2, 2), (2, 0))
    view = torch.randn(6, 6)
    whole = torch.nn.functional.interpolate(view[None, None], size=(8, 12), mode="bilinear", align_corners=False)[0, 0]
    thumbnail, *tiles = tokens.crops
    for tile, part in zip(tiles, [whole[:4, :6], whole[:4, 6:], whole[4:, :6], whole[4:, 6:]], strict=True):
        torch.testing.assert_close(
            resampled(view, thumbnail, tile)[tile.index >= 0], part.flatten(), atol=1e-5, rtol=1e-5
        )


def test_plain_images_ties_and_bad_arguments():
    tokens = tied(measure(GlobalCom2(), plain(4, 4)))
    scores = tokens.measured[NEED].tolist()
    assert GlobalCom2()(tokens, 5).indices.tolist() == sorted(sorted(range(16), key=lambda i: -scores[i])[:5])
    assert GlobalCom2(softmax=True).needs(tokens.tower) == (Need("cls_attention", 23),)
    for temperature in (0, -1, float("nan")):
        with pytest.raises(FoveateError, match="greater than 0"):
            GlobalCom2(temperature)
    with pytest.raises(FoveateError, match="24 blocks"):
        GlobalCom2(layer=24).needs(tokens.tower)


def test_with_reference_newlines_stay_and_the_thumbnail_is_read_by_score():
    tokens = measure(GlobalCom2(), tiled(4, (2, 2), (1, 0)))
    assert tokens.separators is not None
    method = GlobalCom2(reference=True)
    assert not method.static_count
    chosen, plain_choice = method(tokens, 20), method(replace(tokens, separators=None), 20)
    chosen.check(len(tokens))
    newlines = tokens.separators.nonzero().flatten().tolist()
    assert chosen.indices.tolist() == sorted(plain_choice.indices.tolist() + newlines)
    scores = tokens.measured[NEED].tolist()
    thumbnail = [place for place in chosen.indices.tolist() if place < 16]
    order = sorted(thumbnail, key=lambda place: -scores[place])
    rest = [place for place in chosen.indices.tolist() if place >= 16]
    assert chosen.features is not None
    assert torch.equal(chosen.features, tokens.features[order + rest])
    assert torch.equal(chosen.apply(tokens.features), chosen.features)


@pytest.mark.parametrize("softmax", [False, True])
def test_without_cls_what_patches_receive_stands_in(softmax: bool):
    method = GlobalCom2(softmax=softmax)
    assert method.needs(PLAIN) == (Need("received", 11),)
    tokens = measure(method, tiled(4, (2, 2), (0, 0), newlines=False, tower=PLAIN))
    received = tokens.measured[Need("received", 11)]
    scores = received if softmax else [math.log(float(r / received.mean())) for r in received]
    same = replace(tokens, measured={NEED: torch.as_tensor(scores)}, tower=CLIP)
    assert method(tokens, 20).indices.tolist() == by_the_paper(same, 20, 10.0)
