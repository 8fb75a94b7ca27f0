"""VTW: the layer of withdrawal, and later layers against a loop that runs them on the text alone."""

from __future__ import annotations

import pytest
import torch

import foveate
from foveate.core.errors import FoveateError
from foveate.methods.decoder.vtw import VTW
from foveate.testing.layer_tokens import layer_tokens
from tests.families.zoo import IMAGE, zoo
from tests.methods.decoder.fabricated import deep_llava


@pytest.mark.parametrize("size", [1, 9, 30])
def test_nothing_stays(size: int) -> None:
    selection = VTW()(layer_tokens(size), None)
    selection.check(size)
    assert len(selection) == 0
    assert VTW().remaining_tokens(size, None) == 0


def test_an_image_that_ends_the_prompt_keeps_the_token_that_answers() -> None:
    tokens = layer_tokens(6, after=0)
    assert VTW()(tokens, None).indices.tolist() == [5]


def test_layers() -> None:
    """The authors' 15 of 32, in proportion elsewhere; layer 0 and one beyond the last do not exist."""
    assert VTW().layers(32) == (15,)
    assert VTW().layers(40) == (19,)
    assert VTW().layers(2) == (1,)


def test_a_budget_is_refused() -> None:
    with pytest.raises(FoveateError, match="vtw takes no budget"):
        VTW()(layer_tokens(8), 4)


@pytest.mark.parametrize("at", [1, 2])
def test_later_layers_run_on_the_text_alone(at: int) -> None:
    """Logits of the text equal those of a loop: full layers, then the rows of text with the positions they had."""
    specimen, model = zoo()["llava"], deep_llava(3)
    text = model.model.language_model
    inputs = specimen.prompts(model, (((4, 5),),))
    words = (inputs["input_ids"][0] != IMAGE).nonzero().flatten()
    with torch.no_grad():
        with foveate.compress(model, f"vtw@{at}") as handle:
            logits = model(**inputs).logits[0]
            (layer,) = handle.report().images[0].layers
        states = model(**inputs, output_hidden_states=True).hidden_states[at]
        hidden, positions = states[:, words], words[None]
        cos, sin = text.rotary_emb(hidden, positions)
        mask = torch.ones(len(words), len(words), dtype=torch.bool).tril()[None, None]
        for block in text.layers[at:]:
            output = block(hidden, attention_mask=mask, position_ids=positions, position_embeddings=(cos, sin))
            hidden = output[0] if isinstance(output, tuple) else output
        expected = model.lm_head(text.norm(hidden))[0]
    assert layer.tokens_kept == 0
    torch.testing.assert_close(logits[-len(words) :], expected, atol=1e-5, rtol=1e-5)
