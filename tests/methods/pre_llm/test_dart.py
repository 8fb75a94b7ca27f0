"""DART before the language model against a loop from the paper and against numbers of the authors' code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.core.tokens import EncoderSpec, Need, VisualTokens
from foveate.methods.pre_llm.dart import DART

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "dart.json").read_text())


def image(x: Tensor, question: Tensor) -> VisualTokens:
    return VisualTokens.of_grid(x, (1, len(x)), measured={Need("instruction"): question})


def by_the_paper(x: Tensor, question: Tensor, count: int, pivots: int, text_pivots: int) -> list[int]:
    x, question = x.double(), question.double()
    kept = sorted(range(len(x)), key=lambda i: -float(x[i].abs().sum()))[: min(pivots, count)]
    words = sorted(range(len(question)), key=lambda i: -float(question[i].abs().sum()))[:text_pivots]
    directions = [x[i] for i in kept] + [question[i] for i in words]
    open_places = count - len(kept)
    for number, p in enumerate(directions):
        share = open_places // len(directions) + (number < open_places % len(directions))
        rest = [i for i in range(len(x)) if i not in kept]
        kept += sorted(rest, key=lambda i: float(p @ x[i] / (p.norm() * x[i].norm())))[:share]
    return sorted(kept)


@pytest.mark.parametrize(("size", "count"), [(9, 3), (24, 11), (40, 39), (64, 20), (12, 8)])
@pytest.mark.parametrize(("pivots", "text_pivots"), [(8, 0), (4, 4), (1, 0), (3, 9)])
@pytest.mark.parametrize("signs", [False, True])
def test_paper(size, count, pivots, text_pivots, signs):
    x, question = torch.randn(size, 16), torch.randn(6, 16)
    if signs:  # norms and cosines are exact and often equal
        x, question = (v.sign()[:, :4].repeat(1, 4) for v in (x, question))
    selection = DART(pivots, text_pivots)(image(x, question), count)
    selection.check(size)
    assert len(selection) == count
    assert selection.indices.tolist() == by_the_paper(x, question, count, pivots, text_pivots)


@pytest.mark.parametrize("case", GOLDEN["cases"])
def test_authors_code(case):
    tokens = image(torch.tensor(case["features"]).float(), torch.tensor(case["question"]).float())
    method = DART(case["pivots"], case["text_pivots"])
    assert method(tokens, case["count"]).indices.tolist() == case["kept"]


def test_the_question_is_asked_for_only_when_used():
    assert DART().needs(EncoderSpec(24, False)) == ()
    assert DART(text_pivots=4).needs(EncoderSpec(24, False)) == (Need("instruction"),)


def test_bad_arguments():
    with pytest.raises(FoveateError, match="from 1 on"):
        DART(pivots=0)
    with pytest.raises(FoveateError, match="from 0 on"):
        DART(text_pivots=-1)
