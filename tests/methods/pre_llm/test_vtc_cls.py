"""VTC-CLS against a loop from the paper and against numbers of the authors' code."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.core.tokens import EncoderSpec, Need, VisualTokens
from foveate.methods.pre_llm.fastervlm import FasterVLM
from foveate.methods.pre_llm.vtc_cls import VTCCLS
from foveate.testing.visual_tokens import CLIP, PLAIN, measure, plain, tied

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "vtc_cls.json").read_text())


def image(attention: Tensor) -> VisualTokens:
    """An image whose tower has as many blocks as `attention` (blocks, patches); the last but one is read."""
    blocks, size = attention.shape
    measured = {Need("cls_attention", layer): row for layer, row in enumerate(attention)}
    return VisualTokens.of_grid(
        torch.zeros(size, 2), (1, size), tower=EncoderSpec(blocks, True, output_layer=-2), measured=measured
    )


@pytest.mark.parametrize(("size", "count", "start"), [(9, 4, 0), (30, 11, 2), (25, 24, 4)])
@pytest.mark.parametrize("ties", [False, True])
def test_paper(size: int, count: int, start: int, ties: bool):
    attention = torch.randint(0, 3, (6, size)).float() if ties else torch.rand(6, size)
    total = [sum(float(attention[layer, i]) for layer in range(start, 5)) for i in range(size)]
    expected = sorted(sorted(range(size), key=lambda i: -total[i])[:count])
    assert VTCCLS(start)(image(attention), count).indices.tolist() == expected


@pytest.mark.parametrize("case", GOLDEN["cases"])
def test_authors_code(case: dict):
    attention = torch.tensor(case["attention"]).mean(dim=1)
    assert VTCCLS(case["start"])(image(attention), case["count"]).indices.tolist() == case["kept"]


def test_one_block_is_fastervlm():
    tokens = measure(VTCCLS(-2), plain(6, 6))
    attention = tokens.get(Need("cls_attention", 22))
    tokens = replace(tokens, measured={**tokens.measured, FasterVLM().needs(CLIP)[0]: attention})
    for image_ in (tokens, tied(tokens)):
        assert torch.equal(VTCCLS(22)(image_, 10).indices, FasterVLM()(image_, 10).indices)


def test_blocks():
    assert [need.layer for need in VTCCLS().needs(CLIP)] == list(range(16, 23))
    assert [need.layer for need in VTCCLS().needs(EncoderSpec(2, True, output_layer=-2))] == [0]
    with pytest.raises(FoveateError, match="0 to 22"):
        VTCCLS(23).needs(CLIP)
    with pytest.raises(FoveateError, match="12 blocks"):
        VTCCLS(12).needs(PLAIN)
