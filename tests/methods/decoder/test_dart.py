"""DART inside the language model against a loop from the paper, and what a live model does with it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import foveate
from foveate.core.errors import FoveateError
from foveate.core.in_decoder import LayerTokens
from foveate.methods.decoder.dart import DARTDecoder
from foveate.testing.layer_tokens import attention, changed, layer_tokens
from tests.families.zoo import zoo


def by_the_paper(tokens: LayerTokens, count: int, pivots: int, text_pivots: int) -> list[int]:
    asked = tokens.attention("previous")

    def norm(place: int) -> float:
        return sum(abs(float(v)) for head in asked.key for v in head[asked.past + place])

    def state(place: int) -> torch.Tensor:
        return tokens.model.norm(tokens.prompt.hidden[place])

    image = tokens.indices.tolist()
    words = [place for place in tokens.prompt.text.tolist() if place > image[-1]]
    own = sorted(image, key=lambda p: -norm(p))[: min(pivots, count)]
    all_pivots = own + sorted(words, key=lambda p: -norm(p))[:text_pivots]
    chosen, pool = list(own), [p for p in image if p not in own]
    for number, pivot in enumerate(all_pivots):
        share = (count - len(own)) // len(all_pivots) + (number < (count - len(own)) % len(all_pivots))
        pool.sort(key=lambda p: float(torch.cosine_similarity(state(pivot), state(p), dim=0)))
        chosen, pool = chosen + pool[:share], pool[share:]
    return sorted(place - image[0] for place in chosen)


@pytest.mark.parametrize(("size", "count"), [(30, 12), (30, 21), (17, 3), (9, 8)])
@pytest.mark.parametrize("pivots", [(4, 4), (2, 0), (1, 3), (4, 9)])
def test_equals_the_loop(size: int, count: int, pivots: tuple[int, int]) -> None:
    tokens = layer_tokens(size, after=6, seed=size)
    selection = DARTDecoder(*pivots)(tokens, count)
    selection.check(size)
    assert selection.indices.tolist() == by_the_paper(tokens, count, *pivots)


def test_keys_of_an_earlier_turn_do_not_count() -> None:
    tokens = layer_tokens(20)
    now = tokens.attention("previous")
    earlier = attention(3, past=0).key * 100
    longer = replace(now, key=torch.cat([earlier, now.key], dim=1))
    expected = DARTDecoder()(tokens, 9).indices
    assert torch.equal(DARTDecoder()(changed(tokens, ask=lambda asked: longer), 9).indices, expected)


@pytest.mark.parametrize("kind", ["llava", "qwen2.5-vl", "gemma3"])
def test_a_live_model_gives_keys_and_its_last_norm(kind: str) -> None:
    """What is chosen in a model equals the loop on what hooks see in it."""
    specimen = zoo()[kind]
    model = specimen.model()
    inputs = specimen.prompts(model, (((4, 5),),))
    recorded: list[LayerTokens] = []

    class Spy(DARTDecoder):
        def select(self, tokens: LayerTokens, count: int) -> foveate.core.tokens.Selection:
            asked = tokens.attention("previous")
            recorded.append(changed(tokens, ask=lambda _: asked))
            return super().select(tokens, count)

    plan = foveate.Plan((foveate.core.plan.Step(Spy(2, 2), foveate.core.plan.Budget(tokens=7), (1,)),))
    with foveate.compress(model, plan) as handle, torch.no_grad():
        model(**inputs)
        (layer,) = handle.report().images[0].layers
    (tokens,) = recorded
    (norm,) = (module for name, module in model.named_modules() if name.endswith("language_model.norm"))
    with torch.no_grad():
        assert layer.indices.tolist() == by_the_paper(tokens, 7, 2, 2)
        assert torch.equal(tokens.model.norm(tokens.features), norm(tokens.features))


@pytest.mark.parametrize(("arguments", "words"), [({"pivots": 0}, "from 1 on"), ({"text_pivots": -1}, "from 0 on")])
def test_wrong_arguments_are_refused(arguments: dict[str, int], words: str) -> None:
    with pytest.raises(FoveateError, match=words):
        DARTDecoder(**arguments)
