"""ToDRE's first stage against the paper's pseudocode; there is no public code to compare with."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.core.tokens import Crop, EncoderSpec, Grid, Need, VisualTokens
from foveate.methods.pre_llm.divprune import DivPrune
from foveate.methods.pre_llm.todre import ToDRE
from foveate.methods.shared.diversity import Cosines, farthest_first, max_sum

TOWER = EncoderSpec(24, True, output_layer=-2)
NEED = Need("cls_attention", 22)


def image(x: Tensor, attention: Tensor) -> VisualTokens:
    return VisualTokens.of_grid(x, (1, len(x)), tower=TOWER, measured={NEED: attention})


def by_the_paper(x: Tensor, first: int, count: int, rule: str) -> list[int]:
    x = x.double() / x.double().norm(dim=1, keepdim=True)
    picks = [first]
    gather = max if rule == "k-center" else sum
    while len(picks) < count:
        rest = [i for i in range(len(x)) if i not in picks]
        picks.append(min(rest, key=lambda i: gather(float(x[i] @ x[j]) for j in picks)))
    return sorted(picks)


@pytest.mark.parametrize("rule", ["k-center", "max-sum"])
@pytest.mark.parametrize(("size", "width", "count"), [(2, 4, 1), (9, 4, 3), (24, 16, 11), (40, 8, 39), (200, 8, 5)])
@pytest.mark.parametrize("signs", [False, True])
def test_paper(rule, size, width, count, signs):
    x, attention = torch.randn(size, width), torch.rand(size)
    if signs:  # cosines are exact and often equal, and so is attention
        x, attention = x.sign()[:, :4].repeat(1, 4), torch.randint(0, 3, (size,)).float()
    selection = ToDRE(rule)(image(x, attention), count)
    selection.check(size)
    assert selection.indices.tolist() == by_the_paper(x, int(attention.argmax()), count, rule)


def test_rules_differ_as_the_paper_says():
    points = torch.tensor([[0, 0], [1, 0], [0.5, 0.05], [1, 0.02]])
    closeness = -torch.cdist(points, points)
    start = torch.tensor([1])
    assert farthest_first(lambda place: closeness[place[0]], start, 3).tolist() == [1, 0, 2]
    assert max_sum(lambda place: closeness[place[0]], start, 3).tolist() == [1, 0, 3]


def test_k_center_is_divprune_from_the_same_first_token():
    x = torch.randn(50, 8)
    attention = torch.zeros(50)
    attention[Cosines(x, 50).nearest().argmin()] = 1
    tokens = image(x, attention)
    assert torch.equal(ToDRE()(tokens, 20).indices, DivPrune()(tokens, 20).indices)


def test_pivots():
    x = torch.randn(20, 8)
    unit = x / x.norm(dim=1, keepdim=True)
    similar = unit @ unit.mean(dim=0)
    tokens = image(x, torch.arange(20.0))
    assert ToDRE(pivot="cls")(tokens, 1).indices.tolist() == [19]
    assert ToDRE(pivot="center")(tokens, 1).indices.tolist() == [int(similar.argmax())]
    assert ToDRE(pivot="farthest")(tokens, 1).indices.tolist() == [int(similar.argmin())]
    without = replace(tokens, measured={}, tower=EncoderSpec(24, False))
    assert ToDRE().needs(without.tower) == ()
    assert ToDRE()(without, 1).indices.tolist() == [int(similar.argmin())]


def test_the_pivot_is_of_the_thumbnail_and_newlines_go_first():
    x, attention = torch.randn(14, 8), torch.arange(14.0)
    newlines = torch.zeros(14, dtype=torch.bool)
    newlines[[6, 9, 12]] = True
    crops = (
        Crop(torch.arange(4), Grid(2, 2), kind="thumbnail"),
        Crop(torch.tensor([4, 5, 7, 8]), Grid(2, 2), kind="tile"),
        Crop(torch.tensor([10, 11, 13]), Grid(1, 3), kind="tile"),
    )
    tokens = VisualTokens(x, crops, {NEED: attention}, newlines, tower=TOWER)
    assert ToDRE()(tokens, 1).indices.tolist() == [3]
    assert not set(ToDRE()(tokens, 10).indices.tolist()) & {6, 9, 12}
    assert set(ToDRE()(tokens, 12).indices.tolist()) == set(range(14)) - {9, 12}
    ordinary = (~newlines).nonzero().flatten()
    expected = ordinary[by_the_paper(x[ordinary], 3, 6, "k-center")]
    assert ToDRE()(tokens, 6).indices.tolist() == expected.tolist()


def test_bad_arguments():
    with pytest.raises(FoveateError, match="k-center, max-sum"):
        ToDRE("max-min")  # ty: ignore[invalid-argument-type]
    with pytest.raises(FoveateError, match="cls, center, farthest"):
        ToDRE(pivot="random")  # ty: ignore[invalid-argument-type]
    with pytest.raises(FoveateError, match="24 blocks"):
        ToDRE(layer=24).needs(TOWER)
