"""FastV against a loop over the last row of attention, and what a live model does with it."""

from __future__ import annotations

import pytest
import torch

import foveate
from foveate.core.in_decoder import LayerTokens
from foveate.methods.decoder.fastv import FastV
from foveate.testing.layer_tokens import HEADS, changed, layer_tokens
from tests.families.zoo import IMAGE, zoo
from tests.methods.decoder.fabricated import rows_by_hand


def by_the_paper(tokens: LayerTokens, count: int) -> list[int]:
    """The tokens with the largest mean over heads of what the prompt's last token pays in the layer before."""
    matrices = rows_by_hand(tokens.attention("previous"))
    last = int(tokens.prompt.asking[-1])
    first = int(tokens.indices[0])
    phi = {place - first: sum(head[last][place] for head in matrices) / HEADS for place in tokens.indices.tolist()}
    return sorted(sorted(phi, key=lambda place: -phi[place])[:count])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("size", "count"), [(30, 15), (17, 1), (9, 8)])
def test_equals_the_loop(size: int, count: int, seed: int) -> None:
    tokens = layer_tokens(size, seed=seed)
    selection = FastV()(tokens, count)
    selection.check(size)
    assert selection.indices.tolist() == by_the_paper(tokens, count)


def test_the_last_token_of_the_prompt_decides() -> None:
    """Tokens after the prompt and the attention of other rows change nothing."""
    tokens = layer_tokens(20, after=6)
    earlier = changed(tokens, asking=torch.tensor([23]))
    expected = by_the_paper(earlier, 8)
    assert FastV()(earlier, 8).indices.tolist() == expected
    assert expected != by_the_paper(tokens, 8)


def test_layers() -> None:
    """The paper's K = 2, and positions as they were."""
    assert FastV().layers(32) == (2,)
    assert FastV().layers(2) == (1,)
    assert FastV.positions == "original"
    assert FastV.needs_previous_attention


@pytest.mark.parametrize("kind", ["llava", "qwen2.5-vl"])
def test_a_live_model_ranks_by_the_layer_before(kind: str) -> None:
    """What is chosen before layer 2 equals the ranking by the matrix that the eager model gives of layer 1."""
    specimen = zoo()[kind]
    model = specimen.model()
    inputs = specimen.prompts(model, (((4, 5),),))
    with foveate.compress(model, "fastv:7@1") as handle, torch.no_grad():
        model(**inputs)
        (layer,) = handle.report().images[0].layers
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            matrix = model(**inputs, output_attentions=True).attentions[0][0]
    finally:
        model.set_attn_implementation("sdpa")
    image = (inputs["input_ids"][0] == IMAGE).nonzero().flatten()
    phi = [sum(float(head[-1, place]) for head in matrix) for place in image.tolist()]
    expected = sorted(sorted(range(len(phi)), key=lambda place: -phi[place])[:7])
    assert layer.indices.tolist() == expected
