"""PosPad against a loop over runs: exact counts, one marker a gap, at its last place."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from foveate.core.errors import FoveateError
from foveate.core.plan import Plan, parse_plan
from foveate.core.tokens import EncoderSpec, Need, VisualTokens, topk_indices
from foveate.methods.pre_llm.divprune import DivPrune
from foveate.methods.pre_llm.fastervlm import FasterVLM
from foveate.methods.pre_llm.pospad import PosPad, exact_runs, run_ends

TOWER = EncoderSpec(24, True, output_layer=-2)


def image(scores: torch.Tensor) -> VisualTokens:
    features = torch.randn(len(scores), 4, generator=torch.Generator().manual_seed(len(scores)))
    measured = {Need("cls_attention", 22, substitute=True): scores}
    return VisualTokens.of_grid(features, (1, len(scores)), measured=measured, tower=TOWER)


def slow_runs(gone: list[bool]) -> list[list[int]]:
    runs: list[list[int]] = []
    for i, value in enumerate(gone):
        if value and i and gone[i - 1]:
            runs[-1].append(i)
        elif value:
            runs.append([i])
    return runs


@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_run_ends_equal_the_loop(gone: list[bool]) -> None:
    assert run_ends(torch.tensor(gone)).nonzero().flatten().tolist() == [run[-1] for run in slow_runs(gone)]


@given(st.data(), st.integers(2, 40), st.integers(0, 6))
def test_count_is_exact_and_kept_are_the_best(data: st.DataObject, size: int, values: int) -> None:
    scores = torch.tensor(data.draw(st.lists(st.integers(0, values), min_size=size, max_size=size))).float()
    count = data.draw(st.integers(1, size - 1))

    def choose(wanted: int) -> torch.Tensor:
        return torch.zeros(size, dtype=torch.bool).index_fill_(0, topk_indices(scores, wanted), True)

    stays, ends, wanted = exact_runs(choose, size, count)
    assert int(stays.sum()) + int(ends.sum()) == count and not bool((stays & ends).any())
    assert torch.equal(stays, choose(wanted))  # the best, whatever the budget
    runs = slow_runs((~stays).tolist())
    without = [run for run in runs if not ends[run[-1]]]
    assert int(ends.sum()) == len(runs) - len(without) and len(without) <= 1
    fitting = [m for m in range(size) if m + len(slow_runs((~choose(m)).tolist())) <= count]
    assert wanted == max(fitting) + len(without)


def test_a_budget_of_two_keeps_the_best_token_and_a_marker() -> None:
    scores = torch.tensor([0.0, 1, 2, 9, 3, 4, 5, 6])
    assert PosPad()(image(scores), 2).indices.tolist() == [3, 7]
    assert PosPad(marker="mean")(image(scores), 2).assignment is not None
    tail = torch.tensor([0.0, 1, 2, 3, 4, 9, 3])
    assert PosPad()(image(tail), 2).indices.tolist() == [4, 5]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_kept_tokens_and_markers_can_be_counted_apart(count: int) -> None:
    scores = torch.rand(12, generator=torch.Generator().manual_seed(5))
    method = PosPad(apart=True)
    assert not method.static_count and PosPad().static_count
    selection = method(image(scores), count)
    best = topk_indices(scores, count).tolist()
    ends = [run[-1] for run in slow_runs([place not in best for place in range(12)])]
    assert selection.indices.tolist() == sorted(best + ends)
    assert str(Plan.of(method, count)) == f"pospad(apart=True):{count}"


@pytest.mark.parametrize("marker", ["zero", "mean"])
@pytest.mark.parametrize("count", [1, 2, 7, 12, 23])
@pytest.mark.parametrize("selector", ["fastervlm", "divprune", "ppe(members=2)"])
def test_markers_stand_at_the_end_of_their_run(marker: str, count: int, selector: str) -> None:
    tokens = image(torch.rand(24, generator=torch.Generator().manual_seed(3)))
    selection = PosPad(selector, marker)(tokens, count)
    selection.check(24)
    assert len(selection) == count and selection.features is not None
    for row, place in enumerate(selection.indices.tolist()):
        before = int(selection.indices[row - 1]) if row else -1
        alone = selection.assignment is not None and (selection.assignment == row).sum() == 1
        if selector.startswith("ppe"):
            alone = bool(selection.features[row].any())
        if place - before > 1 and not alone:  # a gap ends here: this is its marker
            gap = tokens.features[before + 1 : place + 1]
            if marker == "zero":
                assert not selection.features[row].any()
            elif not selector.startswith("ppe"):
                torch.testing.assert_close(selection.features[row], gap.mean(dim=0))
    torch.testing.assert_close(selection.apply(tokens.features), selection.features)


def test_all_dropped_leaves_one_marker_at_the_last_place_and_all_kept_none() -> None:
    tokens = image(torch.arange(9.0))
    assert PosPad()(tokens, 1).indices.tolist() == [8]
    everything = PosPad()(tokens, 9)
    assert everything.features is None and len(everything) == 9


def test_learned_marker(tmp_path: Path) -> None:
    save_file({"marker": torch.full((4,), 5.0)}, tmp_path / "marker.safetensors")
    method = PosPad(FasterVLM(), embedding=str(tmp_path / "marker.safetensors"))
    selection = method(image(torch.tensor([9.0, 0, 0, 8, 0, 7])), 5)
    assert selection.features is not None
    assert selection.indices.tolist() == [0, 2, 3, 4, 5]
    assert (selection.features == 5).all(dim=1).tolist() == [False, True, False, True, False]
    save_file({"marker": torch.full((4,), 6.0)}, tmp_path / "new.safetensors")
    (tmp_path / "new.safetensors").replace(tmp_path / "marker.safetensors")  # trained again
    features = method(image(torch.tensor([9.0, 0, 0, 8, 0, 7])), 5).features
    assert features is not None and bool((features[1] == 6).all())


def test_plans_round_trip() -> None:
    for text in ("pospad(selector=divprune):8", "pospad(selector=hiprune(alpha=0.2), marker=mean):25%"):
        plan = parse_plan(text)
        assert parse_plan(str(plan)) == plan
    assert PosPad(DivPrune()) == PosPad("divprune")
    assert Plan.of(PosPad(DivPrune()), 8).steps[0].method.needs(TOWER) == ()


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(FoveateError, match="unknown method"):
        PosPad("nothing")
    with pytest.raises(FoveateError, match="one other method"):
        PosPad("pospad")
    with pytest.raises(FoveateError, match="zero, mean"):
        PosPad(marker="red")
    with pytest.raises(FoveateError, match="no file"):
        PosPad(embedding=str(tmp_path / "no"))(image(torch.arange(6.0)), 3)
