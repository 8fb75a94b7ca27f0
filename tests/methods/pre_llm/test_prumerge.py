"""PruMerge and PruMerge+ against a loop from the paper and against numbers of the authors' code."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
import torch
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.core.tokens import EncoderSpec, Need, VisualTokens
from foveate.methods.pre_llm.prumerge import PruMerge, PruMergePlus
from foveate.methods.shared.clustering import spread

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "prumerge.json").read_text())
TOWER = EncoderSpec(24, True, output_layer=-2)


def image(attention: Tensor, keys: Tensor, features: Tensor) -> VisualTokens:
    measured = {Need("cls_attention", 22, substitute=True): attention, Need("keys", 22): keys}
    return VisualTokens.of_grid(features, (1, len(features)), measured=measured, tower=TOWER)


def draw(size: int, ties: bool, outliers: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(size)
    attention = torch.randint(1, 3 if ties else 10**5, (size,), generator=generator).float()
    attention[torch.randperm(size, generator=generator)[:outliers]] = 8 * attention.max()
    keys = torch.randn(size, 4, generator=generator)
    return attention / 10**6, keys, torch.randn(size, 6, generator=generator)


def outliers_by_the_paper(attention: Tensor) -> list[int]:
    low, _, high = statistics.quantiles(attention.tolist(), n=4, method="inclusive")
    return [i for i, a in enumerate(attention.tolist()) if a > high + 1.5 * (high - low)]


def neighbourhood(i: int, keys: Tensor, count: int) -> list[int]:
    others = [j for j in range(len(keys)) if j != i]
    return sorted(others, key=lambda j: (-float(torch.cosine_similarity(keys[i], keys[j], dim=0)), j))[:count]


def merged_by_the_paper(centres: list[int], attention: Tensor, keys: Tensor, features: Tensor, count: int) -> Tensor:
    rows = []
    for i in centres:
        members = [i, *neighbourhood(i, keys, count)]
        rows.append((attention[members, None] * features[members]).sum(dim=0) / attention[members].sum())
    return torch.stack(rows)


@pytest.mark.parametrize(("size", "neighbours"), [(24, 5), (35, 32), (20, 32), (22, 0)])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("count", [None, 1, 7])
def test_equals_the_loop(size: int, neighbours: int, ties: bool, count: int | None) -> None:
    attention, keys, features = draw(size, ties)
    selection = PruMerge(neighbours=neighbours)(image(attention, keys, features), count)
    selection.check(size)
    if count is None:
        centres = outliers_by_the_paper(attention)
        assert len(centres) >= 3
    else:
        centres = sorted(sorted(range(size), key=lambda i: (-float(attention[i]), i))[:count])
    assert selection.indices.tolist() == centres
    expected = merged_by_the_paper(centres, attention, keys, features, neighbours)
    torch.testing.assert_close(selection.features, expected)

    assert selection.assignment is not None
    assert selection.weights is not None
    near = {c: neighbourhood(c, keys, neighbours) for c in centres}
    for i, row in enumerate(selection.assignment.tolist()):
        close = {c: float(torch.cosine_similarity(keys[i], keys[c], dim=0)) for c in centres if i in near[c]}
        if i in centres:
            assert row == centres.index(i)
        else:
            assert row == (centres.index(max(close, key=close.__getitem__)) if close else -1)
    used = selection.assignment >= 0
    totals = torch.zeros(len(centres)).index_add_(0, selection.assignment[used], selection.weights[used])
    torch.testing.assert_close(totals, torch.ones(len(centres)))


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"{case['method']} {case['grid']} {case['count']}")
def test_equals_the_authors_code(case: dict) -> None:
    cls = {"prumerge": PruMerge, "prumerge+": PruMergePlus}[case["method"]]
    tokens = image(*(torch.tensor(case[name]) for name in ("attention", "keys", "features")))
    selection = cls(neighbours=case["neighbours"], reference=True)(tokens, case["count"])
    selection.check(len(tokens))
    assert selection.features is not None
    last = max(set(range(len(tokens))) - set(case["centres"]))
    assert selection.indices.tolist() == sorted([*case["centres"], last])
    expected = dict(zip([*case["centres"], last], [*case["rows"], case["extra"]], strict=True))
    torch.testing.assert_close(
        selection.features, torch.tensor([expected[place] for place in sorted(expected)]), atol=2e-5, rtol=0
    )


def test_more_outliers_more_tokens() -> None:
    counts = []
    for outliers in (1, 4, 9):
        attention, keys, features = draw(64, ties=True, outliers=outliers)
        counts.append(len(PruMerge()(image(attention, keys, features), None)))
    assert counts == [1, 4, 9]


def test_without_outliers_one_token_stays() -> None:
    tokens = image(torch.full((6,), 0.1), torch.eye(6), torch.eye(6))
    selection = PruMerge(neighbours=5)(tokens, None)
    assert selection.indices.tolist() == [0]
    torch.testing.assert_close(selection.features, torch.full((1, 6), 1 / 6))
    assert PruMerge(reference=True)(tokens, None).indices.tolist() == [5]  # only the sum of all dropped ones


def test_the_authors_code_loses_an_outlier_to_rounding() -> None:
    attention = torch.full((49,), 0.01)
    attention[7] = 1.0
    tokens = image(attention, torch.eye(49), torch.eye(49))
    assert PruMerge()(tokens, None).indices.tolist() == [7]
    assert PruMerge(reference=True)(tokens, None).indices.tolist() == [48]


def test_a_budget_counts_the_extra_token() -> None:
    attention, keys, features = draw(24, ties=False)
    for cls in (PruMerge, PruMergePlus):
        for count in (1, 2, 9, 23):
            assert len(cls(reference=True)(image(attention, keys, features), count)) == count


@pytest.mark.parametrize("size", [24, 60, 64])
@pytest.mark.parametrize("ties", [False, True])
def test_plus_adds_an_even_raster(size: int, ties: bool) -> None:
    attention, keys, features = draw(size, ties)
    outliers = outliers_by_the_paper(attention)
    step = max(1, int(1 / (len(outliers) / size)) // 3)
    centres = sorted({*outliers, *range(0, size, step)})
    selection = PruMergePlus(neighbours=4)(image(attention, keys, features), None)
    assert selection.indices.tolist() == centres
    torch.testing.assert_close(selection.features, merged_by_the_paper(centres, attention, keys, features, 4))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_plus_divides_a_budget(share: float) -> None:
    attention, keys, features = draw(40, ties=True)
    for count in (1, 5, 12, 39):
        indices = PruMergePlus(share=share)(image(attention, keys, features), count).indices.tolist()
        best = sorted(range(40), key=lambda i: (-float(attention[i]), i))[: round(share * count)]
        rest = [i for i in range(40) if i not in best]
        more = count - len(best)
        even = [rest[int((i + 0.5) * len(rest) / more)] for i in range(more)]
        assert indices == sorted(best + even)


def test_spread_is_even() -> None:
    assert spread(12, 3).tolist() == [2, 6, 10]
    for size in range(1, 30):
        for count in range(size + 1):
            places = spread(size, count).tolist()
            assert len(set(places)) == count
            assert all(0 <= place < size for place in places)


def test_bad_fields() -> None:
    with pytest.raises(FoveateError, match="prumerge: neighbours must be at least 0"):
        PruMerge(neighbours=-1)
    with pytest.raises(FoveateError, match="part of the budget"):
        PruMergePlus(share=1.1)
