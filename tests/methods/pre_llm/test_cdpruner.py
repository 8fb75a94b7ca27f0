"""CDPruner against determinants and against numbers of the authors' code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.core.tokens import EncoderSpec, Need, VisualTokens
from foveate.methods.pre_llm.cdpruner import CDPruner, most_likely, relevance
from foveate.methods.shared.diversity import Cosines

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "cdpruner.json").read_text())
TOWER = EncoderSpec(24, True, output_layer=-2)


def image(x: Tensor, question: Tensor, embeds: Tensor | None = None) -> VisualTokens:
    if embeds is None:
        measured = {Need("instruction"): question}
    else:
        measured = {Need("text_feature"): question, Need("features", 22): embeds}
    return VisualTokens.of_grid(x, (1, len(x)), tower=TOWER, measured=measured)


def by_the_paper(x: Tensor, question: Tensor, count: int, sign: int = 1, theta: float | None = None) -> list[int]:
    x, question = (v.double() / v.double().norm(dim=1, keepdim=True) for v in (x, question))
    score = sign * (x @ question.T).mean(dim=1)
    weight = (score - score.min() + 1e-6) / (score.max() - score.min())
    if theta is not None:
        weight = (theta / (2 * (1 - theta)) * weight).exp()
    kernel = weight[:, None] * (x @ x.T) * weight
    picks: list[int] = []
    while len(picks) < count:
        rest = [i for i in range(len(x)) if i not in picks]
        picks.append(max(rest, key=lambda i: float(kernel[[*picks, i]][:, [*picks, i]].det())))
    return sorted(picks)


@pytest.mark.parametrize(("size", "width", "count"), [(2, 4, 1), (9, 4, 3), (24, 16, 11), (40, 20, 15)])
@pytest.mark.parametrize("settings", [{}, {"opposite": True}, {"theta": 0.5}])
def test_determinants(size, width, count, settings):
    x, question = torch.randn(size, width), torch.randn(3, width)
    selection = CDPruner(**settings)(image(x, question), count)
    selection.check(size)
    sign = -1 if settings.get("opposite") else 1
    assert selection.indices.tolist() == by_the_paper(x, question, count, sign, settings.get("theta"))


@pytest.mark.parametrize("case", GOLDEN["cases"])
def test_authors_code(case):
    x, embeds, question = (torch.tensor(case[key]).float() for key in ("features", "embeds", "question"))
    assert CDPruner("text")(image(x, question, embeds), case["count"]).indices.tolist() == case["kept"]


def test_one_relevance_is_plain_diversity_and_picks_never_repeat():
    x = torch.randn(6, 8)
    everywhere = torch.zeros(1, 8)  # as similar to every token
    twins = torch.cat([x, x])
    chosen = CDPruner()(image(twins, everywhere), 6).indices.tolist()
    assert chosen == list(range(6))  # of twins the first, and each once
    spanned = CDPruner()(image(twins, everywhere), 9)
    spanned.check(12)
    assert spanned.indices.tolist() == list(range(9))  # nothing is left to span: the first of the others
    low = torch.randn(40, 3)  # more picks than dimensions
    CDPruner()(image(low, torch.randn(2, 3)), 30).check(40)


def test_relevance_decides_between_equals():
    x = torch.eye(4)
    weight = relevance(x, torch.tensor([0.1, 0.4, 0.2, 0.3]))
    assert weight.argsort().tolist() == [0, 2, 3, 1]
    torch.testing.assert_close(weight[[0, 1]], torch.tensor([0.0, 1.0]), atol=1e-4, rtol=0)
    assert most_likely(Cosines(x, 3), weight, 3).tolist() == [1, 3, 2]
    torch.testing.assert_close(relevance(x, torch.ones(4)), torch.ones(4))


def test_bad_arguments():
    with pytest.raises(FoveateError, match="instruction, text"):
        CDPruner("clip")  # ty: ignore[invalid-argument-type]
    with pytest.raises(FoveateError, match="True, False or None"):
        CDPruner(opposite="false")  # ty: ignore[invalid-argument-type]
    with pytest.raises(FoveateError, match="below 1"):
        CDPruner(theta=1.0)
    with pytest.raises(FoveateError, match="3 features a vector and the tokens have 4"):
        CDPruner("text")(image(torch.randn(6, 4), torch.randn(3), torch.randn(6, 4)), 2)
    with pytest.raises(FoveateError, match="no question"):
        CDPruner()(image(torch.randn(6, 4), torch.zeros(0, 4)), 2)
