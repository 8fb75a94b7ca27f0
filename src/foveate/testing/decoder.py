"""Tests that every method inside the language model must pass, without a model."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from foveate.core.errors import FoveateError
from foveate.core.in_decoder import DecoderMethod, LayerTokens
from foveate.core.tokens import Crop, Grid, Selection
from foveate.testing.layer_tokens import changed, layer_tokens
from foveate.testing.promises import PRECISIONS, Promises, chosen_budgets
from foveate.testing.visual_tokens import measured, same

#: Tokens of the image.
SIZE = 24


def image(method: DecoderMethod) -> LayerTokens:
    """An image of 4 x 6 tokens, with what the method needs of the encoder and of neurons."""
    tokens = layer_tokens(SIZE)
    generator = torch.Generator().manual_seed(1)
    values = {need: measured(need, SIZE, generator) for need in method.needs(tokens.encoder.tower)}
    activations = torch.randn(SIZE, 10, generator=generator)
    return changed(
        tokens,
        measured=values,
        neurons=lambda: (activations, torch.arange(4)),
        layout=lambda: (Crop(torch.arange(SIZE), Grid(4, 6)),),
    )


def counts(method: DecoderMethod) -> list[int | None]:
    """Budgets, if it takes them, and None where its own rule decides."""
    return chosen_budgets(method, 1, SIZE // 3, SIZE - 1)


def in_precision(tokens: LayerTokens, dtype: torch.dtype) -> LayerTokens:
    """The same tokens in a model of another precision."""
    attention = {
        source: replace(a, query=a.query.to(dtype), key=a.key.to(dtype))
        for source, a in (("previous", tokens.attention("previous")), ("own", tokens.attention("own")))
    }
    activations, core = tokens.activations()
    return changed(
        tokens,
        features=tokens.features.to(dtype),
        hidden=tokens.prompt.hidden.to(dtype),
        entered=tokens.prompt.entered.to(dtype),
        ask=lambda source: attention[source],
        neurons=lambda: (activations.to(dtype), core),
    )


class DecoderPromises(Promises):
    """Tests that every method inside the language model must pass, without a model."""

    def test_every_choice_is_a_selection(self, method: DecoderMethod) -> None:
        """Indices ascend and are unique; a budget is met exactly where the method says so."""
        for count in counts(method):
            selection = method(image(method), count)
            selection.check(SIZE)
            assert count is None or not method.static_count or len(selection) == count

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_hidden_states_that_are_not_finite_end_in_a_sentence(self, method: DecoderMethod, value: float) -> None:
        """NaN and infinity are refused."""
        tokens = image(method)
        features = tokens.features.clone()
        features[3, 2] = value
        for count in counts(method):
            with pytest.raises(FoveateError, match=rf"{method.name} cannot choose: .* layer 1 are not finite .* row 3"):
                method(replace(tokens, features=features), count)

    @pytest.mark.parametrize("dtype", PRECISIONS)
    def test_any_precision_of_model_and_any_default(
        self, method: DecoderMethod, dtype: torch.dtype, default: torch.dtype
    ) -> None:
        """Rows keep the model's precision, and what new tensors are made in changes nothing."""
        torch.set_default_dtype(torch.float32)
        tokens = in_precision(image(method), dtype)
        expected = [method(tokens, count) for count in counts(method)]
        torch.set_default_dtype(default)
        for count, reference in zip(counts(method), expected, strict=True):
            selection = method(tokens, count)
            selection.check(SIZE)
            assert selection.features is None or selection.features.dtype == dtype
            for field in fields(Selection):
                assert same(getattr(selection, field.name), getattr(reference, field.name)), field.name

    def test_double_precision_is_not_lost_on_the_way(self, method: DecoderMethod) -> None:
        """What float32 cannot tell apart makes a difference to merged rows of float64."""
        tokens = in_precision(image(method), torch.float64)
        nudged = replace(tokens, features=tokens.features + 1e-10)
        for count in counts(method):
            first, second = method(tokens, count), method(nudged, count)
            assert torch.equal(first.indices, second.indices)
            if first.features is not None and second.features is not None:
                nudge = torch.full_like(first.features, 1e-10)
                torch.testing.assert_close(second.features - first.features, nudge, rtol=1e-4, atol=0)
