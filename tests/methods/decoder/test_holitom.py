"""The second stage of HoliTom against numbers of the authors' code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from foveate.methods.decoder.holitom import HoliTomDecoder
from foveate.testing.layer_tokens import layer_tokens
from tests.methods.decoder.fabricated import of_case

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "holitom_decoder.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"{len(case['kept'])} kept")
def test_equals_the_authors_code(case: dict) -> None:
    selection = HoliTomDecoder()(of_case(case), len(case["kept"]))
    assert selection.indices.tolist() == case["kept"]
    torch.testing.assert_close(selection.features, torch.tensor(case["rows"]), rtol=1e-4, atol=1e-5)


def test_weights_halve_with_every_token_that_is_merged() -> None:
    """Three tokens in one: a quarter of the kept one, a quarter of the first merged one, half of the second."""
    tokens = layer_tokens(3)
    scores = tokens.attention("previous").attention_received(tokens.prompt.asking, tokens.indices)
    first, second = (place for place in range(3) if place != int(scores.argmax()))
    selection = HoliTomDecoder()(tokens, 1)
    assert selection.indices.tolist() == [int(scores.argmax())]
    assert selection.weights[[int(scores.argmax()), first, second]].tolist() == [0.25, 0.25, 0.5]


def test_the_layer_of_the_paper() -> None:
    assert HoliTomDecoder().layers(28) == (18,)
    assert HoliTomDecoder().layers(2) == (1,)
