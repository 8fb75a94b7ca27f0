"""FasterVLM against a plain sort and against numbers of the authors' code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.core.tokens import Crop, Grid, Need, VisualTokens
from foveate.methods.pre_llm.fastervlm import FasterVLM
from foveate.testing.visual_tokens import CLIP, PLAIN, measure, plain

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "fastervlm.json").read_text())
NEED = Need("cls_attention", 22, substitute=True)


def image(attention: Tensor) -> VisualTokens:
    size = len(attention)
    return VisualTokens.of_grid(torch.zeros(size, 2), (1, size), tower=CLIP, measured={NEED: attention})


@pytest.mark.parametrize(("size", "count"), [(2, 1), (16, 5), (25, 24), (40, 13)])
@pytest.mark.parametrize("ties", [False, True])
def test_paper(size: int, count: int, ties: bool):
    attention = torch.randint(0, 3, (size,)).float() if ties else torch.rand(size)
    expected = sorted(sorted(range(size), key=lambda i: -float(attention[i]))[:count])
    assert FasterVLM()(image(attention), count).indices.tolist() == expected
    assert FasterVLM()(image(attention * 7), count).indices.tolist() == expected


@pytest.mark.parametrize("case", GOLDEN["cases"])
def test_authors_code(case: dict):
    """Every crop keeps the same number there; here crops of one size divide the budget equally."""
    attention = torch.tensor(case["attention"]).mean(dim=1)
    images, size = attention.shape
    crops = tuple(Crop(torch.arange(i * size, (i + 1) * size), Grid(1, size), kind="tile") for i in range(images))
    tokens = VisualTokens(torch.zeros(images * size, 2), crops, tower=CLIP, measured={NEED: attention.flatten()})
    expected = [i * size + place for i, kept in enumerate(case["kept"]) for place in kept]
    assert FasterVLM()(tokens, images * case["count"]).indices.tolist() == expected


def test_the_block_that_is_read():
    assert FasterVLM().needs(CLIP) == (NEED,)
    assert FasterVLM(layer=-1).needs(CLIP) == (Need("cls_attention", 23, substitute=True),)
    assert FasterVLM().needs(PLAIN)[0].substitute
    with pytest.raises(FoveateError, match="24 blocks"):
        FasterVLM(layer=24)(measure(FasterVLM(), plain(3, 3)), 4)
