"""VMTC against a loop. There is no public code: only the equations can be checked."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.core.tokens import EncoderSpec, Need, VisualTokens
from foveate.methods.pre_llm.vmtc import VMTC
from foveate.methods.shared.clustering import cosine_kmeans, representatives

TOWER = EncoderSpec(24, True, output_layer=-2)


def image(attention: Tensor, features: Tensor) -> VisualTokens:
    measured = {Need("cls_attention", 22, substitute=True): attention}
    return VisualTokens.of_grid(features, (1, len(features)), measured=measured, tower=TOWER)


def slow_kmeans(x: Tensor, count: int, iterations: int) -> list[int]:
    unit = [row / row.norm().clamp(min=1e-12) for row in x]
    centres = [unit[int((i + 0.5) * len(unit) / count)] for i in range(count)]

    def label() -> list[int]:
        labels, close = [], []
        for row in unit:
            cosines = [float(row @ centre) for centre in centres]
            close.append(max(cosines))
            labels.append(cosines.index(max(cosines)))
        best = {}
        for i, c in enumerate(labels):
            if c not in best or close[i] > close[best[c]]:
                best[c] = i
        empty = [c for c in range(count) if c not in best]
        spare = sorted((i for i in range(len(unit)) if i not in best.values()), key=lambda i: (close[i], i))
        for c, i in zip(empty, spare, strict=False):
            labels[i] = c
        return labels

    labels = label()
    for _ in range(iterations):
        sums = [
            sum((unit[i] for i in range(len(unit)) if labels[i] == c), torch.zeros(x.shape[1])) for c in range(count)
        ]
        centres = [s / s.norm().clamp(min=1e-12) for s in sums]
        labels = label()
    return labels


@pytest.mark.parametrize(("size", "count", "iterations"), [(12, 4, 0), (20, 5, 3), (30, 11, 5), (9, 9, 2), (16, 1, 2)])
@pytest.mark.parametrize("ties", [False, True])
def test_kmeans_equals_the_loop(size: int, count: int, iterations: int, ties: bool) -> None:
    generator = torch.Generator().manual_seed(size)
    x = torch.randn(size, 4, generator=generator, dtype=torch.float32)
    if ties:  # along the axes, where products are exact, many times the same direction
        x = torch.eye(4)[torch.randint(0, 2, (size,), generator=generator)]
    labels = cosine_kmeans(x, count, iterations)
    assert labels.unique().tolist() == list(range(count))
    assert labels.tolist() == slow_kmeans(x, count, iterations)


def test_kmeans_finds_separate_directions() -> None:
    x = torch.eye(3)[torch.arange(30) // 10] * torch.arange(1.0, 31)[:, None]
    assert cosine_kmeans(x, 3, 5).tolist() == [0] * 10 + [1] * 10 + [2] * 10


def test_representatives_are_the_first_best() -> None:
    labels, scores = torch.tensor([1, 0, 1, 0, 1]), torch.tensor([2.0, 1, 5, 1, 5])
    assert representatives(labels, scores, 2).tolist() == [1, 2]


@pytest.mark.parametrize(("size", "count", "primary"), [(24, 8, 0.5), (36, 9, 0.25), (25, 10, 0.0), (16, 15, 0.8)])
@pytest.mark.parametrize("ties", [False, True])
def test_clusters_are_weighted_means(size: int, count: int, primary: float, ties: bool) -> None:
    generator = torch.Generator().manual_seed(size)
    attention = torch.randint(1, 3 if ties else 10**4, (size,), generator=generator) / 10**4
    features = torch.randn(size, 5, generator=generator)
    selection = VMTC(primary=primary)(image(attention, features), count)
    selection.check(size)
    assert len(selection) == count
    order = sorted(range(size), key=lambda i: (-float(attention[i]), i))
    best, rest = sorted(order[: round(primary * count)]), sorted(order[round(primary * count) :])
    rows = {i: features[i] for i in best}
    labels = slow_kmeans(features[rest], count - len(best), 10)
    for cluster in range(count - len(best)):
        members = [rest[i] for i in range(len(rest)) if labels[i] == cluster]
        place = max(members, key=lambda i: (float(attention[i]), -i))
        shares = attention[members] / attention[members].sum()
        rows[place] = (features[members] * shares[:, None]).sum(dim=0)
    rows = dict(sorted(rows.items()))
    assert selection.indices.tolist() == list(rows)
    torch.testing.assert_close(selection.features, torch.stack(list(rows.values())))
    assert selection.weights is not None
    assert selection.assignment is not None
    totals = torch.zeros(count).index_add_(0, selection.assignment, selection.weights)
    torch.testing.assert_close(totals, torch.ones(count))


def test_no_importance_at_all_is_a_plain_mean() -> None:
    selection = VMTC(primary=0.0)(image(torch.zeros(4), torch.arange(1.0, 5)[:, None]), 1)
    torch.testing.assert_close(selection.features, torch.tensor([[2.5]]))


def test_only_primary_tokens_is_plain_ranking() -> None:
    assert VMTC(primary=1.0)(image(torch.tensor([1.0, 3, 2]), torch.zeros(3, 2)), 2).indices.tolist() == [1, 2]


def test_bad_fields() -> None:
    with pytest.raises(FoveateError, match="share of the budget"):
        VMTC(primary=2)
    with pytest.raises(FoveateError, match="at least 0, not -1"):
        VMTC(iterations=-1)
