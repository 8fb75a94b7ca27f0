"""What every method inside the language model promises, at the level of its maths: with default arguments, no model.

A new method is tested by being registered.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import pytest
import torch

from foveate.core.errors import FoveateError
from foveate.core.in_decoder import DecoderMethod, LayerTokens
from foveate.core.method import Site
from foveate.core.registry import methods_at
from foveate.core.tokens import Crop, Grid, Selection
from tests.methods.decoder.fabricated import layer_tokens
from tests.methods.pre_llm.fabricate import measured, same

METHODS = {name: cls for name, cls in methods_at(Site.DECODER).items() if not cls.trained}
SIZE = 24


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> DecoderMethod:
    return METHODS[request.param]()


def image(method: DecoderMethod) -> LayerTokens:
    """An image of 4 x 6 tokens, with what the method needs of the encoder and of neurons."""
    tokens = layer_tokens(SIZE)
    generator = torch.Generator().manual_seed(1)
    values = {need: measured(need, SIZE, generator) for need in method.needs(tokens.tower)}
    activations = torch.randn(SIZE, 10, generator=generator)
    return replace(
        tokens,
        measured=values,
        neurons=lambda: (activations, torch.arange(4)),
        layout=lambda: (Crop(torch.arange(SIZE), Grid(4, 6)),),
    )


def counts(method: DecoderMethod) -> list[int | None]:
    own: list[int | None] = [] if method.budget == "count" else [None]
    return own + ([] if method.budget == "none" else [1, SIZE // 3, SIZE - 1])


def test_every_choice_is_a_selection(method: DecoderMethod):
    for count in counts(method):
        selection = method(image(method), count)
        selection.check(SIZE)
        assert count is None or not method.static_count or len(selection) == count


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_hidden_states_that_are_not_finite_end_in_a_sentence(method: DecoderMethod, value: float):
    tokens = image(method)
    features = tokens.features.clone()
    features[3, 2] = value
    for count in counts(method):
        with pytest.raises(FoveateError, match=rf"{method.name} cannot choose: .* layer 1 are not finite .* row 3"):
            method(replace(tokens, features=features), count)


@pytest.mark.parametrize("places", [[1, 1], [2, 1], [-1, 3], [0, SIZE]])
def test_places_that_are_wrong_are_refused(places: list[int]):
    @dataclass(frozen=True)
    class Wrong(DecoderMethod):
        name: ClassVar[str] = "wrong"

        def layers(self, num_layers: int) -> tuple[int, ...]:
            return (1,)

        def select(self, tokens: LayerTokens, count: int) -> Selection:
            return Selection(torch.tensor(places))

    with pytest.raises(FoveateError, match="wrong chose 2 places"):
        Wrong()(layer_tokens(SIZE), 2)


PRECISIONS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@pytest.fixture(params=PRECISIONS)
def default(request: pytest.FixtureRequest) -> Generator[torch.dtype]:
    """What new tensors are made in."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


def in_precision(tokens: LayerTokens, dtype: torch.dtype) -> LayerTokens:
    """The same tokens in a model of another precision."""
    found = {
        asked: replace(a, query=a.query.to(dtype), key=a.key.to(dtype))
        for asked, a in (("previous", tokens.attention("previous")), ("own", tokens.attention("own")))
    }
    activations, core = tokens.activations()
    return replace(
        tokens,
        features=tokens.features.to(dtype),
        sequence=tokens.sequence.to(dtype),
        entered=tokens.entered.to(dtype),
        ask=lambda asked: found[asked],
        neurons=lambda: (activations.to(dtype), core),
    )


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_any_precision_of_model_and_any_default(method: DecoderMethod, dtype: torch.dtype, default: torch.dtype):
    """Rows keep the model's precision, and what new tensors are made in changes nothing."""
    torch.set_default_dtype(torch.float32)
    tokens = in_precision(image(method), dtype)
    expected = [method(tokens, count) for count in counts(method)]
    torch.set_default_dtype(default)
    for count, wanted in zip(counts(method), expected, strict=True):
        selection = method(tokens, count)
        selection.check(SIZE)
        assert selection.features is None or selection.features.dtype == dtype
        for field in fields(Selection):
            assert same(getattr(selection, field.name), getattr(wanted, field.name)), field.name


def test_double_precision_is_not_lost_on_the_way(method: DecoderMethod):
    """What float32 cannot tell apart makes a difference to merged rows of float64."""
    tokens = in_precision(image(method), torch.float64)
    nudged = replace(tokens, features=tokens.features + 1e-10)
    for count in counts(method):
        first, second = method(tokens, count), method(nudged, count)
        assert torch.equal(first.indices, second.indices)
        if first.features is not None and second.features is not None:
            nudge = torch.full_like(first.features, 1e-10)
            torch.testing.assert_close(second.features - first.features, nudge, rtol=1e-4, atol=0)
