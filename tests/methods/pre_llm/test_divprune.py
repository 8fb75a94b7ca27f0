"""DivPrune against a loop from the paper and against numbers of the authors' code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from foveate.core.tokens import VisualTokens
from foveate.methods.pre_llm.divprune import DivPrune
from foveate.methods.shared.diversity import Cosines, farthest_first, gram

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "divprune.json").read_text())


def chosen(x: Tensor, count: int) -> list[int]:
    selection = DivPrune()(VisualTokens.of_grid(x, (1, len(x))), count)
    selection.check(len(x))
    return selection.indices.tolist()


def by_the_paper(x: Tensor, count: int) -> list[int]:
    x = x.double() / x.double().norm(dim=1, keepdim=True)
    distance = [[1 - float(a @ b) for b in x] for a in x]
    everything = range(len(x))
    picks = [max(everything, key=lambda i: min(distance[i][j] for j in everything if j != i))]
    while len(picks) < count:
        rest = [i for i in everything if i not in picks]
        picks.append(max(rest, key=lambda i: min(distance[i][j] for j in picks)))
    return sorted(picks)


@pytest.mark.parametrize(("size", "width", "count"), [(2, 4, 1), (9, 4, 3), (24, 16, 11), (40, 8, 39)])
@pytest.mark.parametrize("signs", [False, True])
def test_paper(size, width, count, signs):
    x = torch.randn(size, width)
    if signs:  # cosines are exact and often equal
        x, width = x.sign()[:, :4].repeat(1, 4), 16
    assert chosen(x, count) == by_the_paper(x, count)


@pytest.mark.parametrize("case", GOLDEN["cases"])
def test_authors_code(case):
    assert chosen(torch.tensor(case["features"]), case["count"]) == case["kept"]


def test_distance_falls_and_clusters_are_both_seen():
    a, b = torch.tensor([1.0, 0.1, 0, 0]), torch.tensor([0, 0, 1.0, 0.1])
    x = torch.cat([a + 0.01 * torch.randn(6, 4), b + 0.01 * torch.randn(6, 4)])
    first, second = chosen(x, 2)
    assert first < 6 <= second
    row = Cosines(x, picks=12)
    similarity = gram(row.x) - 2 * torch.eye(12)
    least = [1 - float(similarity[p][:, p].max()) for k in range(2, 12) for p in [chosen(x, k)]]
    assert least == sorted(least, reverse=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_same_in_every_precision(dtype):
    x = torch.randn(30, 8).to(dtype)
    assert chosen(x, 7) == chosen(x.float(), 7) == by_the_paper(x.float(), 7)


def test_rows_of_the_matrix_and_products_agree():
    x = torch.randn(300, 5)
    few, many = Cosines(x, picks=3), Cosines(x, picks=300)
    assert few.matrix is None and many.matrix is not None
    torch.testing.assert_close(many.matrix, few.x @ few.x.T)
    assert torch.equal(many.matrix, many.matrix.T)
    torch.testing.assert_close(few.nearest(), many.nearest())
    place = torch.tensor([7])
    torch.testing.assert_close(few(place), many(place))
    assert torch.equal(farthest_first(few, place, 40), farthest_first(many, place, 40))
