"""ToDRE's second stage: the rule by hand, and plans that join both stages on live models."""

from __future__ import annotations

import pytest
import torch

import foveate
from foveate.core.attention import Attention
from foveate.core.errors import FoveateError
from foveate.methods.decoder.todre import ToDREDecoder
from foveate.testing.layer_tokens import changed, layer_tokens
from foveate.testing.live import answers
from tests.families.zoo import zoo
from tests.methods.decoder.fabricated import rows_by_hand
from tests.runtime.test_decoder_hooks import deep


def test_equals_the_loop() -> None:
    """Shares of attention between the words behind the image and the image; before the image stand other words."""
    tokens = layer_tokens(7, before=2, after=4, seed=1)
    weights = rows_by_hand(tokens.attention("previous"))

    def share(rows: range, columns: range) -> float:
        paid = [sum(head[row][column] for column in columns) for head in weights for row in rows]
        return sum(paid) / len(paid)

    found = [float(one) for one in ToDREDecoder().shares(tokens)]
    expected = share(range(9, 13), range(2, 9))
    assert found == pytest.approx([expected, 0.0], rel=1e-5)
    assert len(ToDREDecoder(threshold=expected * 1.01)(tokens, None)) == 0
    assert len(ToDREDecoder(threshold=expected * 0.99)(tokens, None)) == 7


def test_words_before_the_image_are_looked_at_by_it() -> None:
    """Where no text follows, the image is judged by both shares."""
    tokens = layer_tokens(5, before=4, after=0, seed=2)
    tokens = changed(tokens, asking=torch.tensor([3]))
    weights = rows_by_hand(tokens.attention("previous"))
    paid = [sum(head[row][:4]) for head in weights for row in range(4, 9)]
    by_image = sum(paid) / len(paid)
    assert [float(one) for one in ToDREDecoder().shares(tokens)] == pytest.approx([0.0, by_image], rel=1e-5)
    assert len(ToDREDecoder(threshold=by_image * 1.01)(tokens, None)) == 0
    assert len(ToDREDecoder(threshold=by_image * 0.99)(tokens, None)) == 5


@pytest.mark.parametrize("past", [0, 5])
def test_equal_attention_is_the_share_of_the_tokens(past: int) -> None:
    tokens = layer_tokens(6)  # between 2 and 4 words
    length = past + len(tokens.prompt.hidden)
    key_mask = torch.ones(length, dtype=torch.bool)
    key_mask[:2] = False  # padding, or words of an earlier turn that are masked
    for mask in (None, key_mask if past else None):
        equal = Attention(torch.zeros(4, length - past, 3), torch.randn(2, length, 3), 1.0, mask)
        found = ToDREDecoder().shares(changed(tokens, ask=lambda _, equal=equal: equal))[0]
        hidden = 0 if mask is None else 2
        assert float(found) == pytest.approx(sum(6 / (past - hidden + 9 + word) for word in range(4)) / 4)


def test_few_tokens_go_at_the_default_threshold() -> None:
    """After a first stage to a tenth, an image with no more attention than the words around it is dropped."""
    equal = Attention(torch.zeros(4, 60, 3), torch.randn(2, 60, 3), 1.0)
    few, many = layer_tokens(4, before=36, after=20), layer_tokens(36, before=4, after=20)
    assert len(ToDREDecoder()(changed(few, ask=lambda _: equal), None)) == 0
    assert len(ToDREDecoder()(changed(many, ask=lambda _: equal), None)) == 36


def test_the_papers_layer() -> None:
    assert [ToDREDecoder().layers(count) for count in (32, 28, 8, 4, 2)] == [(28,), (24,), (7,), (3,), (1,)]


@pytest.mark.parametrize("kind", ["llava", "qwen2.5-vl"])
def test_both_stages_in_one_plan(kind: str) -> None:
    """An image leaves at one layer, and no layer after it has it; a batch is its prompts, with and without a cache."""
    specimen, model = deep(kind)
    inputs = specimen.prompts(model, (((3, 4),), ((2, 3), (4, 3)), ((4, 5),)))
    for threshold, left in (("1.01", 0), ("1e-6", None)):
        with foveate.compress(model, f"todre:50% + todre-decoder(threshold={threshold})") as handle:
            written = answers(model, inputs)
            for image in handle.report().images:
                assert [layer.layer for layer in image.layers] == [5]
                counts = [layer.tokens_kept for layer in image.layers]
                assert counts == [image.tokens_kept if left is None else left]
                assert image.tokens_kept == round(image.tokens_in / 2)
            assert answers(model, inputs, use_cache=False) == written
            assert answers(model, specimen.prompts(model, (((3, 4),),)))[0] == written[0]
    with foveate.compress(model, "todre:50%"):
        assert answers(model, inputs) == written  # nothing left, nothing changed


def test_images_leave_at_layers_of_their_own() -> None:
    specimen, model = deep("llava")
    inputs = specimen.prompts(model, (((3, 4),), ((2, 3), (4, 3)), ((4, 5),)))
    with foveate.compress(model, "todre-decoder(threshold=0.75)@1,2,3,4,5") as handle:
        written = answers(model, inputs)
        counts = [[layer.tokens_kept for layer in image.layers] for image in handle.report().images]
        assert answers(model, inputs, use_cache=False) == written
    assert len({tuple(count > 0 for count in own) for own in counts}) > 1
    for own, image in zip(counts, handle.report().images, strict=True):
        assert own == sorted(own, reverse=True)
        assert set(own) <= {0, image.tokens_in}


def test_a_threshold_that_nothing_is_below_is_refused() -> None:
    with pytest.raises(FoveateError, match="above 0"):
        ToDREDecoder(threshold=0)


def test_it_takes_no_budget() -> None:
    with pytest.raises(FoveateError, match="takes no budget"):
        foveate.compress(zoo()["llava"].model(), "todre-decoder:3@1")
