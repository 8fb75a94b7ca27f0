"""PyramidDrop against a loop over the rows of the layer to come, and its stages in a live model."""

from __future__ import annotations

import pytest
import torch

import foveate
from foveate.core.in_decoder import LayerTokens
from foveate.methods.decoder.pyramiddrop import PyramidDrop
from foveate.testing.layer_tokens import HEADS, changed, layer_tokens
from tests.families.zoo import IMAGE, zoo
from tests.methods.decoder.fabricated import deep_llava, rows_by_hand


def by_the_paper(tokens: LayerTokens, count: int) -> list[int]:
    """The tokens at which the rows that ask look most, by queries and keys of the layer that is about to run."""
    matrices = rows_by_hand(tokens.attention("own"))
    asking, first = tokens.prompt.asking.tolist(), int(tokens.indices[0])
    scores = {
        place - first: sum(head[row][place] for head in matrices for row in asking) / HEADS / len(asking)
        for place in tokens.indices.tolist()
    }
    return sorted(sorted(scores, key=lambda place: -scores[place])[:count])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("size", "count"), [(30, 15), (17, 1), (9, 8)])
def test_equals_the_loop(size: int, count: int, seed: int) -> None:
    tokens = layer_tokens(size, seed=seed)
    selection = PyramidDrop()(tokens, count)
    selection.check(size)
    assert selection.indices.tolist() == by_the_paper(tokens, count)


def test_in_training_the_rows_before_all_answers_are_averaged() -> None:
    tokens = changed(layer_tokens(20, after=6), asking=torch.tensor([23, 25, 27]))
    expected = by_the_paper(tokens, 8)
    assert PyramidDrop()(tokens, 8).indices.tolist() == expected
    assert expected != by_the_paper(changed(tokens, asking=torch.tensor([27])), 8)


def test_layers() -> None:
    """Four stages of equal length."""
    assert PyramidDrop().layers(32) == (8, 16, 24)
    assert PyramidDrop().layers(28) == (7, 14, 21)
    assert PyramidDrop().layers(2) == (1,)  # a layer is a stage once
    assert PyramidDrop.positions == "contiguous"


def test_a_live_model_ranks_by_the_layer_that_follows() -> None:
    """What is chosen before layer 1 equals the ranking by the matrix that the eager model gives of layer 1."""
    specimen = zoo()["llava"]
    model = specimen.model()
    inputs = specimen.prompts(model, (((4, 5),),))
    with foveate.compress(model, "pyramiddrop:7@1") as handle, torch.no_grad():
        model(**inputs)
        (layer,) = handle.report().images[0].layers
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            matrix = model(**inputs, output_attentions=True).attentions[1][0]
    finally:
        model.set_attn_implementation("sdpa")
    image = (inputs["input_ids"][0] == IMAGE).nonzero().flatten()
    scores = [sum(float(head[-1, place]) for head in matrix) for place in image.tolist()]
    expected = sorted(sorted(range(len(scores)), key=lambda place: -scores[place])[:7])
    assert layer.indices.tolist() == expected


def test_half_at_every_stage_is_a_pyramid() -> None:
    model = deep_llava(4)
    inputs = zoo()["llava"].prompts(model, (((4, 5),),))
    with foveate.compress(model, "pyramiddrop:50%") as handle, torch.no_grad():  # one stage a layer
        model(**inputs)
        layers = handle.report().images[0].layers
    size = int((inputs["input_ids"] == IMAGE).sum())
    expected, before = [], set(range(size))
    for layer in layers:
        expected.append(size := size // 2)
        chosen = set(layer.indices.tolist())
        assert chosen < before  # a stage chooses among what the one before left
        before = chosen
    assert [layer.tokens_kept for layer in layers] == expected
    assert expected == [8, 4, 2]
