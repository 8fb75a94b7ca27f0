"""VisPruner against a loop from the paper and against numbers of the authors' code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.core.tokens import EncoderSpec, Need, VisualTokens
from foveate.methods.pre_llm.fastervlm import FasterVLM
from foveate.methods.pre_llm.vispruner import VisPruner

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "vispruner.json").read_text())
TOWER = EncoderSpec(24, True, output_layer=-2)


def image(x: Tensor, attention: Tensor) -> VisualTokens:
    measured = {Need("cls_attention", 22, substitute=True): attention, Need("features", 22): x}
    return VisualTokens.of_grid(torch.zeros(len(x), 2), (1, len(x)), tower=TOWER, measured=measured)


def by_the_paper(x: Tensor, attention: Tensor, count: int, important: float, step: int = 8) -> list[int]:
    x = x.double() / x.double().norm(dim=1, keepdim=True)
    order = sorted(range(len(x)), key=lambda i: -attention[i])
    chosen, rest = order[: int(count * important)], order[int(count * important) :]
    needed = count - len(chosen)
    while needed and len(rest) > needed:
        even, odd = rest[::2], rest[1::2]
        even.sort(key=lambda i: -max(float(x[i] @ x[j]) for j in odd))
        rest = even[min(step, len(rest) - needed) :] + odd
    return sorted(chosen + rest if needed else chosen)


@pytest.mark.parametrize(
    ("size", "count", "important"), [(9, 5, 0.5), (30, 11, 0.5), (41, 3, 0.5), (33, 20, 0.1), (8, 1, 0)]
)
@pytest.mark.parametrize("signs", [False, True])
def test_paper(size, count, important, signs):
    x, attention = torch.randn(size, 16), torch.rand(size)
    if signs:  # cosines are exact and often equal, and so is attention
        x, attention = x.sign()[:, :4].repeat(1, 4), torch.randint(0, 4, (size,)).float()
    selection = VisPruner(important)(image(x, attention), count)
    selection.check(size)
    assert selection.indices.tolist() == by_the_paper(x, attention, count, important)
    assert len(selection) == count


@pytest.mark.parametrize("case", GOLDEN["cases"])
def test_authors_code(case):
    tokens = image(torch.tensor(case["features"]).float(), torch.tensor(case["attention"]).float())
    assert VisPruner(case["important"])(tokens, case["count"]).indices.tolist() == case["kept"]


def test_all_by_attention_is_fastervlm_and_duplicates_go_first():
    x, attention = torch.randn(40, 8), torch.rand(40)
    tokens = image(x, attention)
    assert torch.equal(VisPruner(important=1)(tokens, 9).indices, FasterVLM()(tokens, 9).indices)
    twins = image(x[:8].repeat_interleave(2, dim=0), torch.arange(16.0).flip(0))
    assert VisPruner(important=0)(twins, 8).indices.tolist() == list(range(1, 16, 2))


def test_bad_arguments():
    with pytest.raises(FoveateError, match="0 to 1"):
        VisPruner(important=1.5)
    with pytest.raises(FoveateError, match="from 1 on"):
        VisPruner(step=0)
