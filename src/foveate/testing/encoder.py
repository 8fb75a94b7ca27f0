"""Tests that every method inside the encoder must pass, without a model."""

from __future__ import annotations

import pytest
import torch

from foveate.core.bipartite import Tokens, members
from foveate.core.errors import FoveateError
from foveate.core.in_encoder import EncoderMethod
from foveate.core.tokens import Selection
from foveate.testing.promises import PRECISIONS, Promises

#: Patches and blocks of the encoder, and patches that shall stay.
PATCHES, BLOCKS, COUNT = 20, 3, 8


def run(method: EncoderMethod, x: torch.Tensor, keys: torch.Tensor) -> Tokens:
    """The steps of all blocks, with the keys of the first rows."""
    tokens = Tokens.start(x)
    for step in method.steps(PATCHES, BLOCKS, cls=True, count=None if method.budget == "none" else COUNT):
        if step is not None:
            tokens = step(tokens, keys[:, : tokens.x.shape[1]])
    return tokens


class EncoderPromises(Promises):
    """Tests that every method inside the encoder must pass, without a model."""

    def test_every_choice_is_a_selection(self, method: EncoderMethod) -> None:
        """Indices ascend and are unique; a budget is met exactly where the method says so."""
        torch.manual_seed(1)
        tokens = run(method, torch.randn(2, PATCHES + 1, 6), torch.randn(2, PATCHES + 1, 4))
        for indices, rows in members(tokens, cls=True):
            Selection(indices, assignment=rows).check(PATCHES)
            if method.budget != "none":
                assert len(indices) == COUNT

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    @pytest.mark.parametrize("what", ["rows", "keys"])
    def test_what_is_not_finite_ends_in_a_sentence(self, method: EncoderMethod, what: str, value: float) -> None:
        """NaN and infinity are refused."""
        x, keys = torch.randn(1, PATCHES + 1, 6), torch.randn(1, PATCHES + 1, 4)
        (x if what == "rows" else keys)[0, 3] = value
        with pytest.raises(
            FoveateError, match=f"{method.name} cannot choose: the (rows|keys) of the encoder are not finite"
        ):
            run(method, x, keys)

    @pytest.mark.parametrize("default", PRECISIONS)
    @pytest.mark.parametrize("dtype", PRECISIONS)
    def test_any_precision_of_model_and_any_default(
        self, method: EncoderMethod, dtype: torch.dtype, default: torch.dtype
    ) -> None:
        """Rows keep the model's precision, and what new tensors are made in changes nothing."""
        x, keys = torch.randn(2, PATCHES + 1, 6).to(dtype), torch.randn(2, PATCHES + 1, 4)
        expected = run(method, x, keys)
        before = torch.get_default_dtype()
        torch.set_default_dtype(default)
        try:
            tokens = run(method, x, keys)
        finally:
            torch.set_default_dtype(before)
        assert tokens.x.dtype == dtype
        for one, other in zip(tokens, expected, strict=True):
            assert one.dtype == other.dtype and torch.equal(one, other)

    def test_double_precision_is_not_lost_on_the_way(self, method: EncoderMethod) -> None:
        """What float32 cannot tell apart makes a difference to rows of float64."""
        x, keys = torch.randn(1, PATCHES + 1, 6, dtype=torch.float64), torch.randn(1, PATCHES + 1, 4)
        first, second = run(method, x, keys), run(method, x + 1e-10, keys)
        torch.testing.assert_close(second.x - first.x, torch.full_like(first.x, 1e-10), rtol=1e-4, atol=0)
