"""ScaleKV: the selectivity index, drafters, budgets of layers, the window and what stays."""

from __future__ import annotations

import pytest
import torch

from foveate.core.errors import FoveateError
from foveate.methods.kv_cache import scalekv


def test_the_index_is_that_of_a_loop() -> None:
    attention = torch.randn(2, 3, 4, 10).softmax(dim=-1)
    own = history = 0.0
    for query in attention.flatten(0, 2).tolist():
        own += sum(query[6:])
        history += sum(sorted(query[:6])[-2:])
    assert float(scalekv.selectivity(attention, 4, 2)) == pytest.approx((own / 24) * (history / 24), rel=1e-5)
    assert float(scalekv.selectivity(attention, 10, 2)) == 0
    # More of the history than there is counts all of it.
    share = attention[..., 6:].sum(dim=-1).mean()
    assert float(scalekv.selectivity(attention, 4, 99)) == pytest.approx(float(share * (1 - share)), rel=1e-5)


def test_drafters_are_the_lowest_of_standardised_columns() -> None:
    # The second map's numbers are ten times the first's; standardised they weigh the same.
    index = torch.tensor([[0.1, 6.0], [0.2, 2.0], [0.9, 2.0], [0.8, 6.0]])
    assert scalekv.drafters(index, 4).tolist() == [[True, False], [True, True], [False, True], [False, False]]
    assert scalekv.drafters(torch.ones(3, 2), 1).sum() == 1
    assert not scalekv.drafters(index, 0).any()
    assert scalekv.drafters(torch.zeros(4, 0), 0).shape == (4, 0)


def test_the_sum_at_every_map_is_uniform() -> None:
    drafter = torch.rand(8, 5, generator=torch.Generator().manual_seed(0)) < 0.3
    drafter[:, 4] = False
    budgets = scalekv.layer_budgets(drafter, 650, 0.97, 0.05)
    assert budgets.sum(dim=0).tolist() == [650 * 8] * 5
    for place in range(5):
        refining = budgets[~drafter[:, place], place]
        if drafter[:, place].any():
            assert set(refining.tolist()) == {int(650 * (0.97 - 0.05 * place) + 1e-9)}
            assert int(budgets[drafter[:, place], place].min()) > 650
        else:
            assert set(refining.tolist()) == {650}


def test_tables_of_the_authors() -> None:
    """Their files: 2 drafters of 920 and 30 refiners of 632 tokens; 3 of 909 and 37 of 629; 650 tokens a layer."""
    small = torch.arange(32)[:, None] < 2
    assert sorted(scalekv.layer_budgets(small, 650, 632 / 650, 0.0).flatten().tolist()) == [632] * 30 + [920] * 2
    large = torch.arange(40)[:, None] < 3
    assert sorted(scalekv.layer_budgets(large, 650, 629 / 650, 0.0).flatten().tolist()) == [629] * 37 + [909] * 3


def test_drafters_never_hold_more_than_there_is() -> None:
    drafter = torch.tensor([[True], [False], [False]])
    assert scalekv.layer_budgets(drafter, 80, 0.5, 0.0, [91]).tolist() == [[91], [75], [74]]
    assert scalekv.layer_budgets(drafter, 91, 0.5, 0.0, [91]).tolist() == [[91], [91], [91]]


def test_refiners_with_nothing_are_refused() -> None:
    drafter = torch.tensor([[True] * 4, [False] * 4])
    with pytest.raises(FoveateError, match="refiners would hold nothing at map 3"):
        scalekv.layer_budgets(drafter, 10, 0.9, 0.3)


def test_the_window_is_the_centres_of_cells() -> None:
    assert scalekv.window(8, 4) == [row * 8 + column for row in (1, 3, 5, 7) for column in (1, 3, 5, 7)]
    assert scalekv.window(6, 2) == [1 * 6 + 1, 1 * 6 + 4, 4 * 6 + 1, 4 * 6 + 4]
    assert scalekv.window(3, 4) == list(range(9))
    for side in range(1, 65):
        found = scalekv.window(side, 4)
        assert len(set(found)) == min(16, side * side) and found == sorted(found) and found[-1] < side * side


@pytest.mark.parametrize("pooling", ["average", "maximum"])
def test_scores_are_those_of_a_loop(pooling: str) -> None:
    attention = torch.rand(2, 3, 4, 9)
    found = scalekv.scores(attention, pooling, 5)
    for row in range(2):
        for head in range(3):
            received = [sum(float(attention[row, head, query, key]) for query in range(4)) for key in range(9)]
            for key in range(9):
                near = received[max(0, key - 2) : key + 3]
                expected = max(near) if pooling == "maximum" else sum(near) / len(near)
                assert float(found[row, head, key]) == pytest.approx(expected, rel=1e-5)


def test_the_window_always_stays() -> None:
    score = torch.rand(2, 3, 30)
    always = [25, 27, 29]
    kept = scalekv.keep(score, 10, always)
    assert kept.shape == (2, 3, 10)
    for row, own in zip(kept.flatten(0, 1).tolist(), score.flatten(0, 1), strict=True):
        others = own.clone()
        others[always] = -1
        assert row == sorted(set(row))
        assert set(row) == {*always, *others.topk(7).indices.tolist()}
