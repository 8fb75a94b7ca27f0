"""The promises of every method before the language model. A new method is tested by being registered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from foveate.core.errors import FoveateError
from foveate.core.method import Site
from foveate.core.pre_llm import PreLLMMethod
from foveate.core.registry import methods_at
from foveate.core.tokens import Selection, VisualTokens
from foveate.testing import PreLLMPromises
from foveate.testing.pre_llm import takes_budgets, towers, verify
from foveate.testing.visual_tokens import measure, plain, tied, tiled

BEFORE = methods_at(Site.PRE_LLM)
#: Those that can be measured; the weights of others are trained, and a file of them must be named.
METHODS = tuple(method for method in (cls() for cls in BEFORE.values()) if towers(method) or not method.trained)


class TestPreLLMMethods(PreLLMPromises):
    methods = METHODS


def test_some_are_registered():
    assert {"random", "uniform", "pool", "fastervlm"} <= set(BEFORE)


@settings(max_examples=10)
@given(data=st.data(), rows=st.integers(1, 7), columns=st.integers(1, 7), seed=st.integers(0, 99))
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_any_grid_and_budget(method: PreLLMMethod, data: st.DataObject, rows: int, columns: int, seed: int):
    if not takes_budgets(method):
        pytest.skip("takes no budget")
    tower = data.draw(st.sampled_from(towers(method)))
    if data.draw(st.booleans()):
        tokens = plain(rows, columns, tower, seed)
    else:
        cut = data.draw(st.tuples(st.integers(0, 1), st.integers(0, 1)))
        layout = data.draw(st.sampled_from([(1, 2), (2, 2), (2, 1), (1, 3)]))
        tokens = tiled(3, layout, cut, data.draw(st.booleans()), tower, seed)
    tokens = measure(method, tokens, seed)
    if data.draw(st.booleans()):
        tokens = tied(tokens)
    assume(len(tokens) > 1)  # one token leaves no choice
    verify(method, tokens, data.draw(st.integers(1, len(tokens) - 1)))


@pytest.mark.parametrize("places", [[1, 1], [2, 1], [-1, 3], [0, 16], [0.0, 1.0], [[0, 1]]])
def test_places_that_are_wrong_are_refused(places: list):
    @dataclass(frozen=True)
    class Wrong(PreLLMMethod):
        name: ClassVar[str] = "wrong"

        def select(self, tokens: VisualTokens, count: int) -> Selection:
            return Selection(torch.tensor(places))

    with pytest.raises(FoveateError, match="wrong (chose|gave)"):
        Wrong()(plain(4, 4), 2)
