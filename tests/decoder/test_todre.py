"""ToDRE's second stage: the rule by hand, and plans that join both stages on live models."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import foveate
from decoder.fabricated import layer_tokens, rows_by_hand
from families.zoo import zoo
from foveate.decoder.method import Attention
from foveate.decoder.todre import ToDREAt
from foveate.errors import FoveateError
from runtime.test_layers import deep
from runtime.test_promises import answers


def test_equals_the_loop() -> None:
    tokens = layer_tokens(7, before=2, after=4, seed=1)
    weights, question = rows_by_hand(tokens.attention("previous")), [9, 10, 11, 12]
    paid = [sum(sum(head[row][2:9]) for head in weights) / len(weights) for row in question]
    equal = [7 / (row + 1) for row in question]
    expected = (sum(paid) / 4) / (sum(equal) / 4)
    assert float(ToDREAt().looked_at(tokens)) == pytest.approx(expected, rel=1e-5)
    assert len(ToDREAt(threshold=expected * 1.01)(tokens, None)) == 0
    assert len(ToDREAt(threshold=expected * 0.99)(tokens, None)) == 7


@pytest.mark.parametrize("past", [0, 5])
def test_equal_attention_is_one(past: int) -> None:
    tokens = layer_tokens(6)
    length = past + len(tokens.sequence)
    seen = torch.ones(length, dtype=torch.bool)
    seen[:2] = False  # padding, or words of an earlier turn that nobody sees
    for mask in (None, seen if past else None):
        equal = Attention(torch.zeros(4, length - past, 3), torch.randn(2, length, 3), 1.0, mask)
        found = ToDREAt().looked_at(replace(tokens, ask=lambda _, equal=equal: equal))
        assert float(found) == pytest.approx(1.0)


def test_the_second_half_is_asked() -> None:
    assert ToDREAt().layers(32) == tuple(range(16, 32))
    assert ToDREAt().layers(2) == (1,)


@pytest.mark.parametrize("kind", ["llava", "qwen2.5-vl"])
def test_both_stages_in_one_plan(kind: str) -> None:
    """An image leaves at one layer, and no layer after it has it; a batch is its prompts, with and without a cache."""
    specimen, model = deep(kind)
    inputs = specimen.prompts(model, (((3, 4),), ((2, 3), (4, 3)), ((4, 5),)))
    for threshold, left in (("100.0", 0), ("1e-6", None)):
        with foveate.compress(model, f"todre:50% + todre-at(threshold={threshold})") as handle:
            written = answers(model, inputs)
            for image in handle.report().images:
                assert [layer.layer for layer in image.layers] == [3, 4, 5]
                counts = [layer.tokens_kept for layer in image.layers]
                assert counts == [image.tokens_kept if left is None else left] * 3
                assert image.tokens_kept == round(image.tokens_in / 2)
            assert answers(model, inputs, use_cache=False) == written
            assert answers(model, specimen.prompts(model, (((3, 4),),)))[0] == written[0]
    with foveate.compress(model, "todre:50%"):
        assert answers(model, inputs) == written  # nothing left, nothing changed


def test_images_leave_at_layers_of_their_own() -> None:
    specimen, model = deep("llava")
    inputs = specimen.prompts(model, (((3, 4),), ((2, 3), (4, 3)), ((4, 5),)))
    with foveate.compress(model, "todre-at(threshold=0.9)@1,2,3,4,5") as handle:
        written = answers(model, inputs)
        counts = [[layer.tokens_kept for layer in image.layers] for image in handle.report().images]
        assert answers(model, inputs, use_cache=False) == written
    assert len({tuple(count > 0 for count in own) for own in counts}) > 1
    for own, image in zip(counts, handle.report().images, strict=True):
        assert own == sorted(own, reverse=True)
        assert set(own) <= {0, image.tokens_in}


def test_a_threshold_that_nothing_is_below_is_refused() -> None:
    with pytest.raises(FoveateError, match="above 0"):
        ToDREAt(threshold=0)


def test_it_takes_no_budget() -> None:
    with pytest.raises(FoveateError, match="takes no budget"):
        foveate.compress(zoo()["llava"].model(), "todre-at:3@1")
