"""HACK: variance of heads, budgets, what stays, and merging."""

from __future__ import annotations

import math

import pytest
import torch

from foveate.core.errors import FoveateError
from foveate.methods.kv_cache import hack


def test_variance_is_that_of_a_loop() -> None:
    attention = torch.rand(2, 3, 5, 7).softmax(dim=-1)
    found = hack.head_variance(attention)
    for batch in range(2):
        for head in range(3):
            total = 0.0
            for key in range(7):
                column = [float(attention[batch, head, query, key]) for query in range(5)]
                mean = sum(column) / 5
                total += sum((value - mean) ** 2 for value in column) / 5
            assert float(found[batch, head]) == pytest.approx(total, rel=1e-4)


def test_stripes_are_contextual_and_diagonals_structural() -> None:
    stripes = torch.tensor([0.7, 0.2, 0.1, 0.0]).expand(4, 4)
    variance = hack.head_variance(torch.stack([torch.eye(4), stripes]))[None]
    assert float(variance[0, 1]) == 0
    assert hack.contextual_heads(variance, 0.5).tolist() == [[False, True]]


def test_heads_are_ranked_among_all_layers() -> None:
    variance = torch.tensor([[0.1, 0.9], [0.2, 0.3], [0.8, 0.7]])
    assert hack.contextual_heads(variance, 0.5).tolist() == [[True, False], [True, True], [False, False]]
    assert not hack.contextual_heads(variance, 0).any()
    assert hack.contextual_heads(variance, 1).all()


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("average", [12, 27, 90])
@pytest.mark.parametrize("most", [None, 91])
def test_the_mean_budget_is_exact(share: float, ratio: float, average: int, most: int | None) -> None:
    variance = torch.rand(6, 4, generator=torch.Generator().manual_seed(1))
    budgets = hack.head_budgets(variance, share, average, ratio, most)
    assert int(budgets.sum()) == average * 24
    assert int(budgets.min()) >= 1
    chosen = hack.contextual_heads(variance, share)
    if chosen.any() and not chosen.all():
        assert int(budgets[chosen].max()) <= int(budgets[~chosen].min())
    if most is not None:
        assert int(budgets.max()) <= most


def test_budgets_by_hand() -> None:
    variance = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    # 2 B_C + 2 B_S = 40 with B_C = floor(B_S / 2): B_S = 13, B_C = 6, two tokens are left for the structural heads.
    assert hack.head_budgets(variance, 0.5, 10, 0.5).tolist() == [[6, 6], [14, 14]]
    assert hack.head_budgets(variance, 0.5, 10, 0.5, most=12).tolist() == [[8, 8], [12, 12]]
    assert hack.head_budgets(variance, 0.5, 12, 0.5, most=12).tolist() == [[12, 12], [12, 12]]


def test_a_budget_that_leaves_a_head_nothing_is_refused() -> None:
    with pytest.raises(FoveateError, match="leaves contextual heads none"):
        hack.head_budgets(torch.rand(2, 2), 0.5, 2, 0.1)


def test_observed_queries_are_even() -> None:
    assert hack.observed_queries(9, 3) == [1, 4, 7]
    assert hack.observed_queries(3, 16) == [0, 1, 2]
    for count in range(1, 70):
        found = hack.observed_queries(count, 16)
        assert len(set(found)) == min(16, count) and found == sorted(found) and found[-1] < count


def test_structural_heads_keep_both_ends() -> None:
    scores = torch.tensor([0.0, 0.0, 0.3, 0.1, 0.9, 0.8, 0.0, 0.0])
    assert hack.keep_structural(scores, 5, 2, 2).tolist() == [0, 1, 4, 6, 7]
    assert hack.keep_contextual(scores, 3).tolist() == [2, 4, 5]
    scores = torch.rand(2, 3, 40)
    kept = hack.keep_structural(scores, 15, 4, 6)
    for row in kept.flatten(0, 1).tolist():
        assert row == sorted(set(row)) and row[:4] == [0, 1, 2, 3] and row[-6:] == list(range(34, 40))
    middle = scores.clone()
    middle[..., :4] = middle[..., 34:] = -1
    for row, own in zip(kept.flatten(0, 1).tolist(), middle.flatten(0, 1), strict=True):
        assert set(row[4:-6]) == set(own.topk(5).indices.tolist())


def merged_by_loop(keys: torch.Tensor, kept: list[int]) -> list[list[float]]:
    """Of one head, keys as their own values."""
    out = []
    weights: dict[int, list[tuple[float, int]]] = {index: [] for index in kept}
    for other in range(len(keys)):
        if other in kept:
            continue
        cosines = {
            index: float(keys[other] @ keys[index]) / math.dist(keys[other], [0] * 4) / math.dist(keys[index], [0] * 4)
            for index in kept
        }
        best = max(kept, key=cosines.__getitem__)
        weights[best].append((max(cosines[best], 0.0), other))
    for index in kept:
        whole = 1 + sum(weight for weight, _ in weights[index])
        total = keys[index].clone()
        for weight, other in weights[index]:
            total += weight * keys[other]
        out.append((total / whole).tolist())
    return out


def test_merging_is_that_of_a_loop() -> None:
    keys, values = torch.randn(2, 3, 9, 4), torch.randn(2, 3, 9, 4)
    kept = torch.stack([torch.randperm(9)[:4].sort().values for _ in range(6)]).view(2, 3, 4)
    new_keys, new_values = hack.merge_evicted(keys, values, kept)
    for row in range(2):
        for head in range(3):
            expected = torch.tensor(merged_by_loop(keys[row, head], kept[row, head].tolist()))
            torch.testing.assert_close(new_keys[row, head], expected)
    assert not torch.allclose(new_values, values.gather(2, kept[..., None].expand(-1, -1, -1, 4)))
    same_keys, _ = hack.merge_evicted(keys, values, torch.arange(9).expand(2, 3, 9))
    assert torch.equal(same_keys, keys)
