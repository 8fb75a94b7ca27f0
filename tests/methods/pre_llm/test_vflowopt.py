"""VFlowOpt's first stage against a loop from the paper, its cells, and its entropy by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.core.plan import Plan
from foveate.core.tokens import Grid, Need, VisualTokens
from foveate.methods.pre_llm.vflowopt import VFlowOpt, cells_of, grey_entropy, recycled
from foveate.runtime.probe import hub_attention
from foveate.testing.visual_tokens import CLIP, frames, measure, plain, tiled


def by_the_paper(scores: list[float], cells: list[int], count: int) -> tuple[set[int], list[list[int]]]:
    """What stays, and the groups that are merged: ever more of the lowest scores, until `count` remain."""
    order = sorted(range(len(scores)), key=lambda i: scores[i])
    for gone in range(len(scores) + 1):
        groups: dict[int, list[int]] = {}
        for i in order[:gone]:
            groups.setdefault(cells[i], []).append(i)
        if len(scores) - gone + len(groups) <= count:
            return set(order[gone:]), [sorted(group) for group in groups.values()]
    best = sorted(groups.values(), key=lambda group: -sum(scores[i] for i in group))[:count]
    return set(), [sorted(group) for group in best]


@pytest.mark.parametrize("cell", [1, 2.5, 3, 17.387])
@pytest.mark.parametrize("count", [1, 2, 5, 12, 20, 41])
def test_equals_the_loop(cell: float, count: int) -> None:
    method, tokens = VFlowOpt(cell=cell), measure(VFlowOpt(), plain(6, 7), seed=count)
    scores = tokens.get(*method.needs(CLIP))
    cells = [math.floor(row / cell) * 100 + math.floor(column / cell) for row in range(6) for column in range(7)]
    stay, groups = by_the_paper(scores.tolist(), cells, count)
    selection = method(tokens, count)
    selection.check(42)
    expected = {i: tokens.features[i] for i in stay}
    for group in groups:
        weights = scores[group] / scores[group].sum()
        expected[max(group, key=lambda i: float(scores[i]))] = weights @ tokens.features[group]
    assert selection.indices.tolist() == sorted(expected)
    torch.testing.assert_close(selection.features, torch.stack([expected[i] for i in sorted(expected)]))
    torch.testing.assert_close(selection.apply(tokens.features), selection.features)
    for row in range(len(selection)):
        own = selection.sources(row)
        assert float(selection.weights[own].sum()) == pytest.approx(1, abs=1e-5)


def test_equal_scores_and_scores_of_zero() -> None:
    scores, cells = torch.zeros(6), torch.tensor([0, 0, 0, 1, 1, 1])
    best, rest, rows = recycled(scores, cells, 4)
    assert (best.tolist(), rest.tolist(), rows.tolist()) == ([2, 1, 0], [3, 4, 5], [3, 3, 3])
    tokens = VisualTokens.of_grid(torch.arange(6.0)[:, None], (2, 3), tower=CLIP)
    need = VFlowOpt().needs(CLIP)[0]
    selection = VFlowOpt(cell=9)(VisualTokens(tokens.features, tokens.crops, {need: scores}, tower=CLIP), 1)
    assert selection.features is not None
    assert float(selection.features) == pytest.approx(2.5)  # nothing is known: a plain mean


def test_tiles_share_one_raster_of_cells() -> None:
    tokens = tiled(4, (2, 2), (1, 0))
    cells = cells_of(tokens, 3)
    assert tokens.separators is not None
    assert torch.equal(cells < 0, tokens.separators)
    own = cells[16:].view(6, 9)[:, :8]  # 6 rows of the canvas of 8 are no padding; the last column is newlines
    names = own.unique(return_inverse=True)[1]
    expected = [[row // 3 * 3 + column // 3 for column in range(8)] for row in range(6)]
    assert names.tolist() == expected
    assert not set(cells[:16].tolist()) & set(own.flatten().tolist())
    assert len(cells_of(frames(3, 3, 4), 4).unique()) == 3


def test_newlines_stay_as_long_as_there_is_room() -> None:
    method, tokens = VFlowOpt(cell=3), measure(VFlowOpt(), tiled(4, (2, 2), (1, 0)))
    assert tokens.separators is not None
    newlines = tokens.separators.nonzero().flatten()
    for count in (len(newlines) + 1, 20, 60):
        selection = method(tokens, count)
        assert len(selection) == count
        assert set(newlines.tolist()) <= set(selection.indices.tolist())
        assert selection.features is not None
        rows = torch.searchsorted(selection.indices, newlines)
        torch.testing.assert_close(selection.features[rows], tokens.features[newlines])
    assert not set(newlines.tolist()) & set(method(tokens, len(newlines)).indices.tolist())


def eager_hubs(weights: Tensor, threshold: float) -> Tensor:
    received = weights.mean(dim=0)
    hubs = [j for j in range(len(weights)) if received[j] > threshold * received.mean()] or [int(received.argmax())]
    return sum(weights[i] for i in hubs) / len(hubs)  # ty: ignore[invalid-return-type]


@pytest.mark.parametrize("threshold", [0.0, 1.0, 1.4, 30.0])
def test_hub_attention_equals_the_loop(threshold: float) -> None:
    query, key = torch.randn(2, 2, 4, 11, 5, generator=torch.Generator().manual_seed(1))
    weights = (query @ key.transpose(-1, -2) * 0.7).softmax(dim=-1).mean(dim=1)
    found = hub_attention(query, key, None, 0.7, threshold)
    torch.testing.assert_close(found, torch.stack([eager_hubs(own, threshold) for own in weights]))


@pytest.mark.parametrize("threshold", [0.0, 1.0, 1.4, 30.0])
@pytest.mark.parametrize("added", [False, True])
def test_images_of_one_sequence_have_hubs_of_their_own(threshold: float, added: bool) -> None:
    query, key = torch.randn(2, 1, 2, 12, 5, generator=torch.Generator().manual_seed(2))
    mask = torch.zeros(1, 1, 12, 12, dtype=torch.bool)
    mask[..., :7, :7] = True
    mask[..., 7:, 7:] = True
    given = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min) if added else mask
    found = hub_attention(query, key, given, 1.0, threshold)[0]
    for part in (slice(0, 7), slice(7, 12)):
        alone = hub_attention(query[:, :, part], key[:, :, part], None, 1.0, threshold)[0]
        torch.testing.assert_close(found[part], alone)


def test_entropy_by_hand() -> None:
    """A flat cell has none, two equally frequent levels have one bit, four have two."""
    image = torch.zeros(3, 2, 6)
    image[:, :, 3] = 1.0
    image[:, 0, 4], image[:, 1, 4], image[:, 0, 5] = 0.25, 0.5, 0.75
    assert grey_entropy(image, Grid(1, 3)).tolist() == pytest.approx([0, 1, 2])


def test_entropy_joins_the_score() -> None:
    tokens = measure(VFlowOpt(entropy=0.5), plain(4, 7))
    hubs, pixels = VFlowOpt(entropy=0.5).needs(CLIP)
    expected = tokens.get(hubs) + 0.5 * grey_entropy(tokens.get(pixels), Grid(4, 7)).softmax(dim=0)
    assert torch.equal(VFlowOpt(entropy=0.5).scores(tokens), expected)
    assert VFlowOpt(entropy=0.5).needs(CLIP)[1] == Need("pixels")


def test_the_authors_budgets() -> None:
    """(9 r_v + 9 r_v r_1 + 10 r_v r_1 r_2) / 28 of the settings in the docstring is their budget."""
    for target, (before, first, second) in {
        0.10: ("vflowopt:11.66%", 1.0, 0.6011),
        0.25: ("vflowopt:26.51%", 0.9833, 0.8773),
        0.50: ("vflowopt:72.33%", 0.7487, 0.487),
    }.items():
        share = Plan.of(before).steps[0].budget.fraction
        assert (9 * share + 9 * share * first + 10 * share * first * second) / 28 == pytest.approx(target, abs=1e-3)


@pytest.mark.parametrize("arguments", [{"threshold": -1}, {"cell": 0.5}, {"entropy": 2}])
def test_wrong_arguments_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(FoveateError, match=next(iter(arguments))):
        VFlowOpt(**arguments)  # ty: ignore[invalid-argument-type]
