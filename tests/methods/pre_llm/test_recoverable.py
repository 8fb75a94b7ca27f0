"""Recoverable Compression against a loop from the paper and against numbers of the authors' code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.core.plan import parse_plan
from foveate.core.tokens import EncoderSpec, Need, VisualTokens
from foveate.methods.pre_llm.recoverable import RecoverableCompression
from foveate.methods.shared.clustering import outlier_factor

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "recoverable.json").read_text())
TOWER = EncoderSpec(24, True, output_layer=-2)
cosine = torch.nn.functional.cosine_similarity


def slow_factor(values: Tensor, k: int) -> list[float]:
    numbers = values.tolist()
    size = len(numbers)
    order = {i: (numbers[i], i) for i in range(size)}
    near = [
        sorted((j for j in range(size) if j != i), key=lambda j: (abs(numbers[i] - numbers[j]), order[j]))[:k]
        for i in range(size)
    ]
    reach = [abs(numbers[i] - numbers[near[i][-1]]) for i in range(size)]
    density = [
        1 / (sum(max(reach[j], abs(numbers[i] - numbers[j])) for j in near[i]) / len(near[i]) + 1e-10)
        for i in range(size)
    ]
    return [sum(density[j] for j in near[i]) / len(near[i]) / density[i] for i in range(size)]


@pytest.mark.parametrize(("size", "k"), [(2, 1), (12, 4), (40, 10), (9, 20)])
def test_outlier_factor_equals_the_loop(size: int, k: int) -> None:
    values = torch.randn(size, generator=torch.Generator().manual_seed(size))
    expected = torch.tensor(slow_factor(values, min(k, size - 1)))
    torch.testing.assert_close(outlier_factor(values, k), expected, rtol=1e-3, atol=1e-3)


def test_outlier_factor_of_a_crowd_and_of_a_stranger() -> None:
    values = torch.cat([torch.linspace(0, 1, 30), torch.tensor([5.0])])
    assert (outlier_factor(values, 5) > 1.5).nonzero().flatten().tolist() == [30]
    assert outlier_factor(torch.ones(8), 3).tolist() == [1.0] * 8
    assert outlier_factor(torch.ones(1), 3).tolist() == [1.0]


# Which of equally near numbers are neighbours is left open there.
@pytest.mark.parametrize("case", [case for case in GOLDEN["cases"] if not case["ties"]], ids=lambda c: str(c["grid"]))
def test_outlier_factor_equals_scikit_learn(case: dict) -> None:
    factor = outlier_factor(torch.tensor(case["attention"]), 10)
    torch.testing.assert_close(factor, torch.tensor(case["factors"]), rtol=2e-3, atol=2e-3)


def draw(size: int, seed: int, ties: bool = False) -> VisualTokens:
    generator = torch.Generator().manual_seed(seed)
    features, cls, words = (torch.randn(n, 6, generator=generator) for n in (size, 1, 5))
    patches = torch.randn(size, 6, generator=generator)
    patches[:3] += 4 * cls  # these stand out
    if ties:
        patches[3:] = patches[3:4]
    measured = {
        Need("keys", 22): torch.randn(size, 4, generator=generator),
        Need("cls_feature", 22): cls[0],
        Need("features", 22): patches,
        Need("instruction"): words,
    }
    return VisualTokens.of_grid(features, (1, size), measured=measured, tower=TOWER)


@pytest.mark.parametrize(("size", "seed"), [(30, 0), (48, 1), (64, 2), (5, 3)])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("count", [None, 1, 3, 4])
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_equals_the_loop(size: int, seed: int, ties: bool, count: int | None, similarity: str) -> None:
    tokens = draw(size, seed, ties)
    selection = RecoverableCompression(similarity=similarity)(tokens, count)  # ty: ignore[invalid-argument-type]
    selection.check(size)
    patches, cls = tokens.get(Need("features", 22)), tokens.get(Need("cls_feature", 22))
    words = tokens.get(Need("instruction"))
    if similarity == "dot":
        v = [sum(a * b for a, b in zip(x, cls.tolist(), strict=True)) for x in patches.tolist()]
        products = [
            [sum(a * b for a, b in zip(x, w, strict=True)) for w in words.tolist()] for x in tokens.features.tolist()
        ]
        t = [sum(row) / len(row) for row in products]
    else:
        v = cosine(patches, cls[None]).tolist()
        words = words / words.norm(dim=1, keepdim=True)
        t = cosine(tokens.features, words.mean(dim=0)[None]).tolist()
    keys = tokens.get(Need("keys", 22))

    def strange(values: list[float], k: int) -> int:
        return int((outlier_factor(torch.tensor(values), k) > 1.5).sum())

    def best(scores: list[float], among: list[int], n: int) -> list[int]:
        return sorted(among, key=lambda i: (-scores[i], i))[:n]

    left = list(range(size))
    first = best(v, left, strange(v, 20) if count is None else round(0.5 * count))
    left = [i for i in left if i not in first]
    n = strange([t[i] for i in left], 20) if count is None else min(round(0.3 * count), count - len(first))
    second = best(t, left, n)
    left = [i for i in left if i not in second]
    n = max(1, strange([v[i] for i in left], 10)) if count is None else count - len(first) - len(second)
    centres = best(v, left, n)
    groups = {c: [] for c in sorted(centres)}
    for i in left:
        if centres:
            groups[i if i in centres else max(groups, key=lambda c: float(cosine(keys[i], keys[c], dim=0)))].append(i)
    rows = {i: [i] for i in first + second} | groups
    rows = dict(sorted(rows.items()))
    assert selection.indices.tolist() == list(rows)
    expected = torch.stack([tokens.features[members].mean(dim=0) for members in rows.values()])
    torch.testing.assert_close(selection.apply(tokens.features), expected)
    if centres:  # the three sets are a partition of the tokens
        assert sorted(i for row in range(len(selection)) for i in selection.sources(row).tolist()) == list(range(size))


def test_counts_follow_the_image() -> None:
    assert len({len(RecoverableCompression()(draw(64, seed), None)) for seed in range(6)}) > 1


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"{case['grid']} ties {case['ties']}")
def test_equals_the_authors_code(case: dict) -> None:
    measured = {
        Need("cls_attention", 22, substitute=True): torch.tensor(case["attention"]),
        Need("keys", 22): torch.tensor(case["keys"]),
        Need("text_feature"): torch.tensor(case["text"]),
        Need("features", 23): torch.tensor(case["patches"]),
    }
    features = torch.tensor(case["features"])
    tokens = VisualTokens.of_grid(features, tuple(case["grid"]), measured=measured, tower=TOWER)
    selection = RecoverableCompression(text_embedding="aligned", reference=True)(tokens, None)
    selection.check(len(tokens))
    kept = sorted(case["by_vision"] + case["by_text"])
    expected = {place: features[place] for place in kept}
    if case["centres"]:
        expected |= dict(zip(case["centres"], map(torch.tensor, case["rows"]), strict=True))
        expected[max(set(range(len(tokens))) - set(expected))] = torch.tensor(case["extra"])
    assert selection.indices.tolist() == sorted(expected)
    out = features[selection.indices] if selection.features is None else selection.features
    torch.testing.assert_close(out, torch.stack([expected[i] for i in sorted(expected)]), atol=2e-5, rtol=0)


def test_what_it_measures() -> None:
    keys, attention = Need("keys", 22), Need("cls_attention", 22, substitute=True)
    method = RecoverableCompression()
    assert method.needs(TOWER) == (keys, Need("cls_feature", 22), Need("features", 22), Need("instruction"))
    assert method.needs(EncoderSpec(23, False)) == (keys, attention, Need("instruction"))
    assert RecoverableCompression(reference=True).needs(TOWER) == (keys, attention, Need("instruction"))
    aligned = RecoverableCompression(text_embedding="aligned").needs(TOWER)
    assert aligned[3:] == (Need("text_feature"), Need("features", 23))


def test_bad_input() -> None:
    with pytest.raises(FoveateError, match="'instruction' or 'aligned'"):
        RecoverableCompression(text_embedding="none")  # ty: ignore[invalid-argument-type]
    with pytest.raises(FoveateError, match="'dot' or 'cosine'"):
        RecoverableCompression(similarity="none")  # ty: ignore[invalid-argument-type]
    with pytest.raises(FoveateError, match="together at most 1"):
        RecoverableCompression(visual=0.8, recovered=0.3)
    with pytest.raises(FoveateError, match="the argument text is called text_embedding"):
        parse_plan("recoverable(text=aligned)")
    tokens = draw(12, 0)
    measured = {**tokens.measured, Need("instruction"): torch.zeros(0, 6)}
    empty = VisualTokens.of_grid(tokens.features, (3, 4), measured=measured, tower=TOWER)
    with pytest.raises(FoveateError, match="the prompt has none"):
        RecoverableCompression()(empty, 3)
    measured = {
        **tokens.measured,
        Need("text_feature"): torch.zeros(4),
        Need("features", 23): torch.zeros(12, 6),
    }
    wide = VisualTokens.of_grid(tokens.features, (3, 4), measured=measured, tower=TOWER)
    with pytest.raises(FoveateError, match="width 4 cannot be compared with patches of width 6"):
        RecoverableCompression(text_embedding="aligned")(wide, 3)
