"""SparseVLM against loops written from the paper, and against numbers and counts of the authors' code."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

import foveate
from foveate.core.errors import FoveateError
from foveate.core.in_decoder import LayerTokens
from foveate.methods.decoder.sparsevlm import SparseVLM
from foveate.methods.shared.clustering import density_peaks
from foveate.testing.layer_tokens import changed, layer_tokens
from tests.families.zoo import zoo
from tests.methods.decoder.fabricated import in_any_order, of_case, rows_by_hand

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "sparsevlm.json").read_text())


def raters_by_the_paper(tokens: LayerTokens) -> list[int]:
    words = [place for place in tokens.prompt.text.tolist() if place > int(tokens.indices[-1])]
    fit = [0.0] * len(words)
    for visual in tokens.prompt.image.tolist():
        logits = [float(tokens.prompt.entered[visual] @ tokens.prompt.entered[word]) for word in words]
        total = sum(math.exp(value) for value in logits)
        fit = [f + math.exp(value) / total / len(tokens) for f, value in zip(fit, logits, strict=True)]
    return [word for word, f in zip(words, fit, strict=True) if f > sum(fit) / len(fit)] or words


def scores_by_the_paper(tokens: LayerTokens) -> list[float]:
    weights, raters = rows_by_hand(tokens.attention("previous")), raters_by_the_paper(tokens)
    return [
        sum(weights[head][rater][place] for head in range(len(weights)) for rater in raters) / len(raters)
        for place in tokens.indices.tolist()
    ]


def clusters_by_the_paper(x: torch.Tensor, count: int) -> list[list[int]]:
    size = len(x)
    distance = [[float((x[i] - x[j]).norm()) / x.shape[1] ** 0.5 for j in range(size)] for i in range(size)]
    density = [math.exp(-sum(d * d for d in sorted(row)[:count]) / count) for row in distance]
    apart = []
    for i in range(size):
        denser = [distance[i][j] for j in range(size) if density[j] > density[i]]
        apart.append(min(denser) if denser else max(map(max, distance)))
    centres = sorted(range(size), key=lambda i: -density[i] * apart[i])[:count]
    groups: list[list[int]] = [[centre] for centre in centres]
    for i in range(size):
        if i not in centres:
            groups[min(range(count), key=lambda c: distance[i][centres[c]])].append(i)
    return [sorted(group) for group in groups]


@pytest.mark.parametrize(("size", "count"), [(20, 1), (20, 3), (31, 5), (9, 9), (1, 1)])
def test_clusters_equal_the_loop(size: int, count: int) -> None:
    x = torch.randn(size, 5, generator=torch.Generator().manual_seed(size))
    centres, labels = density_peaks(x, count)
    expected = clusters_by_the_paper(x, count)
    assert [(labels == c).nonzero().flatten().tolist() for c in range(count)] == expected
    assert all(int(centre) in group for centre, group in zip(centres, expected, strict=True))


def test_equal_tokens_are_clusters_too() -> None:
    centres, labels = density_peaks(torch.ones(6, 4), 3)
    assert centres.tolist() == [0, 1, 2]
    assert sorted(set(labels.tolist())) == [0, 1, 2]


@pytest.mark.parametrize(("size", "count"), [(30, 12), (57, 9), (40, 20), (12, 3)])
def test_a_budget_equals_the_loop(size: int, count: int) -> None:
    method, tokens = SparseVLM(cluster_size=3), layer_tokens(size, after=9, seed=size)
    selection = method(tokens, count)
    selection.check(size)
    assert len(selection) == count
    scores = scores_by_the_paper(tokens)
    order = sorted(range(size), key=lambda i: -scores[i])
    stay, clusters = method.divided(size, count)
    rows = {i: tokens.features[i] for i in order[:stay]}
    recycled = sorted(order[stay : stay + int(0.3 * (size - stay)) + 1])
    groups = clusters_by_the_paper(tokens.features[recycled], clusters) if clusters else []
    found = {int(i): row for i, row in zip(selection.indices, selection.apply(tokens.features), strict=True)}
    for i, row in rows.items():
        assert torch.equal(found.pop(i), row)
    means = [tokens.features[[recycled[i] for i in group]].mean(dim=0) for group in groups]
    for place, row in found.items():
        (group,) = [g for g, other in enumerate(groups) if place in [recycled[i] for i in other]]
        torch.testing.assert_close(row, means.pop(group))
        groups.pop(group)
    assert not means
    if clusters:
        torch.testing.assert_close(selection.features, selection.apply(tokens.features))


@pytest.mark.parametrize(
    ("kept", "with_clusters"),
    [((300, 200, 110), (309, 204, 113)), ((303, 110, 36), (312, 117, 39)), ((66, 30, 17), (82, 32, 18))],
)
def test_the_authors_table(kept: tuple[int, ...], with_clusters: tuple[int, ...]) -> None:
    size = 576
    for own, budget in zip(kept, with_clusters, strict=True):
        assert SparseVLM().divided(size, budget) == (own, budget - own)
        size = budget


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: str(len(case["hidden"])))
def test_equals_the_authors_code(case: dict) -> None:
    tokens, clusters = of_case(case), torch.tensor(case["clusters"])
    assert SparseVLM().raters(tokens).tolist() == case["raters"]
    selection = SparseVLM()(tokens, len(case["kept"]) + len(clusters))
    merged = [row for row, place in enumerate(selection.indices.tolist()) if place not in case["kept"]]
    assert len(merged) == len(clusters)
    assert selection.features is not None
    torch.testing.assert_close(in_any_order(selection.features[merged]), in_any_order(clusters), atol=1e-4, rtol=0)
    sources = [place for row in merged for place in selection.sources(row).tolist()]
    assert sorted(sources) == case["recycled"]
    read = SparseVLM(reference=True)(tokens, len(case["kept"]) + len(clusters))
    assert read.features is not None  # clusters are read last
    stay = len(case["kept"])
    assert torch.equal(read.features[:stay], tokens.features[sorted(case["kept"])])
    torch.testing.assert_close(in_any_order(read.features[stay:]), in_any_order(clusters), atol=1e-4, rtol=0)
    torch.testing.assert_close(read.apply(tokens.features), read.features)


def test_every_budget_can_be_divided() -> None:
    for cluster_size in (1, 3, 10):
        method = SparseVLM(cluster_size=cluster_size)
        for size in range(2, 60):
            for count in range(1, size):
                stay, clusters = method.divided(size, count)
                assert stay + clusters == count
                assert clusters <= min(count // 2, method.recyclable(size - stay))


def test_the_rank_says_how_many_go() -> None:
    tokens = layer_tokens(40, after=9, seed=3)
    raters = raters_by_the_paper(tokens)
    weights = torch.tensor(rows_by_hand(tokens.attention("previous"))).mean(dim=0)
    paid = weights[raters][:, tokens.indices]
    rank = int((torch.linalg.svdvals(paid) > 1e-6).sum())
    assert 1 <= rank <= len(raters)
    for scale in (0.5, 1.0):
        gone = int(scale * (40 - rank))
        clusters = (int(0.3 * gone) + 1) // 10 + 1
        assert len(SparseVLM(rank_scale=scale)(tokens, None)) == 40 - gone + clusters
    assert len(SparseVLM(recycled=0)(tokens, None)) == 40 - int(0.5 * (40 - rank))


def test_words_that_fit_equally_all_rate() -> None:
    tokens = layer_tokens(10)
    same = changed(tokens, entered=torch.ones_like(tokens.prompt.entered))
    assert SparseVLM().raters(same).tolist() == tokens.question.tolist() == [12, 13, 14, 15]


def test_raters_stay_the_same_after_tokens_have_gone() -> None:
    tokens = layer_tokens(10, seed=4)
    raters = SparseVLM().raters(tokens)
    left = torch.tensor([0, 1, 4, 9, *range(12, 16)])  # two words, places 4 and 9 of the image, the question
    shorter = changed(
        tokens,
        features=tokens.features[[2, 7]],
        hidden=tokens.prompt.hidden[left],
        indices=torch.tensor([2, 3]),
        text=torch.tensor([0, 1, 4, 5, 6, 7]),
        asking=torch.tensor([7]),
        columns=left,
    )
    assert left[SparseVLM().raters(shorter)].tolist() == raters.tolist()


def test_the_question_ends_where_the_answer_is_asked_for() -> None:
    tokens = changed(layer_tokens(10), asking=torch.tensor([13]))
    assert tokens.question.tolist() == [12, 13]
    assert changed(tokens, asking=torch.tensor([1])).question.tolist() == [0, 1]


@pytest.mark.parametrize("kind", ["llava", "qwen2.5-vl"])
def test_without_a_budget_a_live_model_follows_the_rank(kind: str) -> None:
    specimen = zoo()[kind]
    model = specimen.model()
    inputs = specimen.prompts(model, (((6, 6),),))
    with foveate.compress(model, "sparsevlm(rank_scale=1.0)@1") as handle, torch.no_grad():
        model(**inputs)
        (layer,) = handle.report().images[0].layers
    assert 0 < layer.tokens_kept < layer.tokens_in


@pytest.mark.parametrize("arguments", [{"rank_scale": 0}, {"recycled": 1.5}, {"cluster_size": 0}])
def test_wrong_arguments_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(FoveateError, match=next(iter(arguments))):
        SparseVLM(**arguments)  # ty: ignore[invalid-argument-type]
