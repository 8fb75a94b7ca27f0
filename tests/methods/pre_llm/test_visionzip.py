"""VisionZip against a loop from the paper and against numbers of the authors' code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.core.tokens import EncoderSpec, Need, VisualTokens
from foveate.methods.pre_llm.visionzip import VisionZip

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "visionzip.json").read_text())
TOWER = EncoderSpec(24, True, output_layer=-2)


def image(attention: Tensor, keys: Tensor, features: Tensor) -> VisualTokens:
    measured = {Need("cls_attention", 22, substitute=True): attention, Need("keys", 22): keys}
    return VisualTokens.of_grid(features, (1, len(features)), measured=measured, tower=TOWER)


def by_the_paper(
    attention: Tensor, keys: Tensor, features: Tensor, dominant: int, contextual: int
) -> dict[int, Tensor]:
    size = len(features)
    best = sorted(range(size), key=lambda i: (-float(attention[i]), i))[:dominant]
    rest = [i for i in range(size) if i not in best]
    targets = rest[:: len(rest) // contextual][:contextual] if contextual else []
    groups = {target: [target] for target in targets}
    for i in rest:
        if targets and i not in targets:
            cosines = [float(torch.cosine_similarity(keys[i], keys[target], dim=0)) for target in targets]
            groups[targets[cosines.index(max(cosines))]].append(i)
    rows = {i: features[i] for i in best} | {t: features[group].mean(dim=0) for t, group in groups.items()}
    return dict(sorted(rows.items()))


@pytest.mark.parametrize(("size", "count", "share"), [(24, 10, 27 / 32), (37, 12, 0.5), (16, 5, 0.0), (20, 7, 1.0)])
@pytest.mark.parametrize("ties", [False, True])
def test_equals_the_loop(size: int, count: int, share: float, ties: bool) -> None:
    generator = torch.Generator().manual_seed(size)
    attention = torch.randint(0, 3 if ties else 10**6, (size,), generator=generator).float()
    keys = torch.randn(size, 4, generator=generator)
    features = torch.randn(size, 6, generator=generator)
    selection = VisionZip(share=share)(image(attention, keys, features), count)
    selection.check(size)
    dominant = round(share * count)
    expected = by_the_paper(attention, keys, features, dominant, count - dominant)
    assert selection.indices.tolist() == list(expected)
    rows = selection.apply(features)
    torch.testing.assert_close(rows, torch.stack(list(expected.values())))
    if dominant < count:
        torch.testing.assert_close(selection.features, rows)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: str(case["grid"]))
def test_equals_the_authors_code(case: dict) -> None:
    count = case["dominant"] + case["contextual"]
    features = torch.tensor(case["features"])
    tokens = image(torch.tensor(case["attention"]), torch.tensor(case["keys"]), features)
    selection = VisionZip(share=case["dominant"] / count, reference=True)(tokens, count)
    assert selection.indices.tolist() == sorted(case["dominant_kept"] + case["targets"])
    assert selection.features is not None
    dominant = sorted(case["dominant_kept"])
    assert torch.equal(selection.features[: len(dominant)], features[dominant])
    contextual = torch.tensor(case["contextual_tokens"])
    torch.testing.assert_close(selection.features[len(dominant) :], contextual, atol=2e-5, rtol=0)


def test_the_split_of_the_paper() -> None:
    for count, dominant in ((64, 54), (128, 108), (192, 162)):
        assert round(VisionZip().share * count) == dominant


def test_a_target_that_nobody_joins_is_itself() -> None:
    features = torch.arange(8.0)[:, None]
    attention = torch.tensor([9.0, 8, 0, 0, 0, 0, 0, 0])
    keys = torch.eye(8)[[0, 1, 2, 5, 5, 5, 5, 5]]
    for reference, joined in ((False, (3 + 4 + 5 + 6 + 7) / 5), (True, 5 + (3 + 4 + 6 + 7) / 4)):
        selection = VisionZip(share=0.5, reference=reference)(image(attention, keys, features), 4)
        assert selection.indices.tolist() == [0, 1, 2, 5]  # six are left: every third is a target
        assert selection.features is not None
        assert selection.features[:, 0].tolist() == pytest.approx([0, 1, 2, joined])


def test_bad_share() -> None:
    with pytest.raises(FoveateError, match="dominant part of the budget"):
        VisionZip(share=-0.1)
