"""Tests that every method before the language model must pass, without a model."""

from __future__ import annotations

import copy
import dataclasses
import random
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from foveate.core.errors import FoveateError
from foveate.core.pre_llm import PreLLMMethod
from foveate.core.tokens import EncoderSpec, Selection, VisualTokens
from foveate.testing.promises import PRECISIONS, Promises, chosen_budgets
from foveate.testing.visual_tokens import CLIP, PLAIN, frames, measure, plain, same, tied, tiled


def usable(method: PreLLMMethod, tower: EncoderSpec) -> bool:
    """Whether the method can be measured on the encoder: without [CLS], only needs with a substitute can be."""
    try:
        needs = method.needs(tower)
    except FoveateError:
        return False
    return tower.has_cls or not any(n.kind.startswith("cls") and not n.substitute for n in needs)


def towers(method: PreLLMMethod) -> list[EncoderSpec]:
    """The encoders on which it can be measured."""
    return [tower for tower in (CLIP, PLAIN) if usable(method, tower)]


def images(tower: EncoderSpec) -> dict[str, VisualTokens]:
    """Images of many shapes by name."""
    return {
        "square": plain(6, 6, tower),
        "wide": plain(2, 9, tower),
        "high": plain(7, 3, tower),
        "row": plain(1, 11, tower),
        "column": plain(8, 1, tower),
        "two": plain(1, 2, tower),
        "padded rows": tiled(4, (2, 2), (1, 0), tower=tower),
        "padded columns": tiled(3, (1, 3), (0, 2), tower=tower),
        "an empty tile": tiled(2, (3, 1), (2, 0), tower=tower),
        "no newlines": tiled(3, (2, 1), (0, 0), newlines=False, tower=tower),
        "clip": frames(tower=tower),
    }


def budgets(tokens: VisualTokens) -> list[int]:
    """Small, middle and large ones."""
    size = len(tokens)
    return sorted({count for count in (1, 2, size // 3, size // 2, size - 2, size - 1) if 0 < count < size})


def verify(method: PreLLMMethod, tokens: VisualTokens, count: int | None) -> Selection:
    """Choose, and check what holds for every selection of every method."""
    selection = method(tokens, count)
    selection.check(len(tokens))
    kept = len(selection)
    assert 0 < kept <= len(tokens)
    if count is not None and method.static_count:
        assert kept == count, f"{kept} tokens stay, {count} were announced"
    if selection.features is not None:
        assert selection.features.dtype == tokens.features.dtype
        assert selection.features.shape == (kept, tokens.features.shape[1])
    if selection.assignment is not None:
        assert selection.assignment.dtype == torch.int64
        assert int(selection.assignment.min()) >= -1
        used = selection.assignment[selection.assignment >= 0]
        filled = used.unique()  # a marker stands for tokens without being made of them
        assert torch.equal(selection.assignment[selection.indices[filled]], filled), (
            "a row stands at one of its members"
        )
        if selection.weights is not None:
            assert selection.weights.shape == (len(tokens),)
            weights = selection.weights[selection.assignment >= 0].float()
            shares = torch.zeros(kept, dtype=torch.float32).index_add_(0, used, weights)
            torch.testing.assert_close(shares[filled], torch.ones_like(shares[filled]))
    if selection.positions is not None:
        assert selection.positions.dtype == torch.int64
        assert len(selection.positions) == kept
        assert 0 <= int(selection.positions.min()) <= int(selection.positions.max()) < len(tokens)
    return selection


def takes_budgets(method: PreLLMMethod) -> bool:
    """Whether it can be given a budget."""
    return method.budget != "none"


def choices(method: PreLLMMethod, tokens: VisualTokens) -> list[int | None]:
    """A budget, if it takes one, and None where its own rule decides."""
    return chosen_budgets(method, max(1, len(tokens) // 3))


def in_precision(tokens: VisualTokens, dtype: torch.dtype) -> VisualTokens:
    """The same image of a model of another precision: scores and keys come in float32, what a model made in its own."""
    values = {
        need: value.to(dtype) if need.kind in ("features", "instruction", "cls_feature") else value
        for need, value in tokens.measured.items()
    }
    return replace(tokens, features=tokens.features.to(dtype), measured=values)


#: Fields of a selection that are the same for equal ones.
COMPARED = tuple(field.name for field in dataclasses.fields(Selection) if field.compare)

CORNERS = {
    "all equal": lambda x: torch.ones_like(x),
    "all zero": lambda x: torch.zeros_like(x),
    "huge": lambda x: x.sign() * 1e18,
    "tiny": lambda x: x * 1e-30,
    "one stands out": lambda x: torch.cat([x[:1] * 1e6, torch.zeros_like(x[1:])]),
}


class PreLLMPromises(Promises):
    """Tests that every method before the language model must pass, without a model."""

    def test_every_method_runs_on_some_encoder(self, method: PreLLMMethod) -> None:
        """What it needs can be measured on an encoder with [CLS] or on one without."""
        assert towers(method)

    def test_exactly_the_announced_number(self, method: PreLLMMethod) -> None:
        """Every budget is met exactly, on images of any grid, tiled ones and clips."""
        if not takes_budgets(method):
            pytest.skip("takes no budget")
        for tower in towers(method):
            for name, tokens in images(tower).items():
                tokens = measure(method, tokens)
                for count in budgets(tokens):
                    try:
                        verify(method, tokens, count)
                    except Exception as error:
                        error.add_note(f"image {name!r}, {count} of {len(tokens)} tokens, {tower}")
                        raise

    @pytest.mark.parametrize("excess", [0, 1, 1000])
    def test_a_full_budget_changes_nothing(self, method: PreLLMMethod, excess: int) -> None:
        """A budget of all tokens or more keeps every token as it is."""
        if not takes_budgets(method):
            pytest.skip("takes no budget")
        for tokens in images(towers(method)[0]).values():
            tokens = measure(method, tokens)
            selection = method(tokens, len(tokens) + excess)
            assert selection.indices.tolist() == list(range(len(tokens)))
            assert selection.features is None or torch.equal(selection.features, tokens.features)
            assert selection.positions is None

    @pytest.mark.parametrize("count", [0, -1, -1000])
    def test_an_impossible_budget_is_an_error(self, method: PreLLMMethod, count: int) -> None:
        """A budget below one token ends in a sentence."""
        tokens = measure(method, plain(3, 3, towers(method)[0]))
        with pytest.raises(FoveateError, match=method.name):
            method(tokens, count)

    def test_a_missing_budget(self, method: PreLLMMethod) -> None:
        """A budget is asked for, left to the method or refused, as the method says."""
        tokens = measure(method, plain(4, 4, towers(method)[0]))
        if method.budget == "count":
            with pytest.raises(FoveateError, match="needs a budget"):
                method(tokens, None)
        else:
            verify(method, tokens, None)
        if method.budget == "none":
            with pytest.raises(FoveateError, match="takes no budget"):
                method(tokens, 3)

    def test_the_same_twice_and_nothing_else_is_touched(self, method: PreLLMMethod) -> None:
        """Equal methods choose alike, and leave the tokens and all global random states alone."""
        for tower in towers(method):
            for tokens in (plain(5, 5, tower), tiled(tower=tower)):
                tokens = measure(method, tokens)
                before = copy.deepcopy(tokens)
                state = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
                for count in choices(method, tokens):
                    first, second = method(tokens, count), replace(method)(tokens, count)
                    for field in COMPARED:
                        assert same(getattr(first, field), getattr(second, field)), field
                after = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
                assert torch.equal(state[0], after[0])
                assert state[1] == after[1]
                assert all(np.array_equal(a, b) for a, b in zip(state[2], after[2], strict=True))
                assert torch.equal(before.features, tokens.features)
                assert same(before.separators, tokens.separators)
                for a, b in zip(before.crops, tokens.crops, strict=True):
                    assert torch.equal(a.index, b.index) and (a.grid, a.box, a.kind) == (b.grid, b.box, b.kind)
                assert before.measured.keys() == tokens.measured.keys()
                for need, value in before.measured.items():
                    assert torch.equal(value, tokens.measured[need])

    @pytest.mark.parametrize("dtype", PRECISIONS)
    def test_any_precision_of_model_and_any_default(
        self, method: PreLLMMethod, dtype: torch.dtype, default: torch.dtype
    ) -> None:
        """Rows keep the model's precision, and what new tensors are made in changes nothing."""
        for tower in towers(method):
            for tokens in (plain(4, 5, tower), tiled(tower=tower)):
                torch.set_default_dtype(torch.float32)
                tokens = in_precision(measure(method, tokens), dtype)
                expected = [method(tokens, count) for count in choices(method, tokens)]
                torch.set_default_dtype(default)
                for count, wanted in zip(choices(method, tokens), expected, strict=True):
                    selection = verify(method, tokens, count)
                    assert selection.apply(tokens.features).dtype == dtype
                    for field in COMPARED:
                        assert same(getattr(selection, field), getattr(wanted, field)), field

    def test_double_precision_is_not_lost_on_the_way(self, method: PreLLMMethod) -> None:
        """What float32 cannot tell apart makes a difference to merged rows of float64."""
        tower = towers(method)[0]
        for tokens in (plain(4, 5, tower), tiled(tower=tower)):
            tokens = in_precision(measure(method, tokens), torch.float64)
            nudged = replace(tokens, features=tokens.features + 1e-10)
            for count in choices(method, tokens):
                first, second = method(tokens, count), method(nudged, count)
                assert torch.equal(first.indices, second.indices)
                made = torch.ones(len(first), dtype=torch.bool)
                if first.assignment is not None:  # a marker is made of no token
                    made[:] = False
                    made[first.assignment[first.assignment >= 0]] = True
                pairs = [(first.apply(tokens.features), second.apply(nudged.features))]
                if first.features is not None and second.features is not None:
                    pairs.append((first.features, second.features))
                for one, other in pairs:
                    nudge = torch.full_like(one[made], 1e-10)
                    torch.testing.assert_close(other[made] - one[made], nudge, rtol=1e-4, atol=0)

    @pytest.mark.parametrize("corner", CORNERS)
    def test_corner_values(self, method: PreLLMMethod, corner: str) -> None:
        """Equal, huge and tiny values end in a selection, and in finite rows."""
        change = CORNERS[corner]
        for tower in towers(method):
            for tokens in (plain(4, 4, tower), plain(1, 3, tower), tiled(tower=tower)):
                tokens = measure(method, tokens)
                values = {need: v if need.kind == "pixels" else change(v) for need, v in tokens.measured.items()}
                everything = replace(tokens, features=change(tokens.features), measured=values)
                only_features = replace(tokens, features=change(tokens.features))
                for altered in (everything, only_features):
                    for count in choices(method, altered):
                        selection = verify(method, altered, count)
                        if selection.features is not None:
                            assert selection.features.isfinite().all()

    def test_an_image_of_one_token(self, method: PreLLMMethod) -> None:
        """An image of one token keeps it."""
        for tower in towers(method):
            tokens = measure(method, plain(1, 1, tower))
            for count in choices(method, tokens):
                assert verify(method, tokens, count).indices.tolist() == [0]

    def test_scores_with_ties(self, method: PreLLMMethod) -> None:
        """Equal scores end in one selection, the same every time."""
        for tower in towers(method):
            for tokens in (plain(6, 4, tower), tiled(tower=tower), frames(tower=tower)):
                tokens = tied(measure(method, tokens))
                for count in choices(method, tokens):
                    first = verify(method, tokens, count)
                    assert same(first.indices, method(tokens, count).indices)

    def test_separators_go_before_tokens_of_the_image(self, method: PreLLMMethod) -> None:
        """Newline tokens are left out before any token of the image is."""
        if not takes_budgets(method) or not method.static_count or method.sees_separators:
            pytest.skip("separators are tokens like others to it, or the number is its own")
        tokens = measure(method, tiled(tower=towers(method)[0]))
        separators = tokens.separators
        assert separators is not None
        ordinary = int((~separators).sum())
        for count in (1, ordinary // 2, ordinary - 1, ordinary):
            assert not separators[verify(method, tokens, count).indices].any()
        more = verify(method, tokens, ordinary + 2)
        assert int(separators[more.indices].sum()) == 2

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_numbers_that_are_not_finite_end_in_a_sentence(self, method: PreLLMMethod, value: float) -> None:
        """NaN and infinity are refused."""
        for tokens in (plain(4, 5, towers(method)[0]), tiled(tower=towers(method)[0])):
            tokens = measure(method, tokens)
            for what in ("features", *tokens.measured):
                values = (tokens.features if what == "features" else tokens.measured[what]).clone()
                values.view(-1)[values.numel() // 2] = value
                if what == "features":
                    broken = replace(tokens, features=values)
                else:
                    broken = replace(tokens, measured={**tokens.measured, what: values})
                for count in choices(method, broken):
                    with pytest.raises(
                        FoveateError, match=rf"{re.escape(method.name)} cannot choose: .* are not finite"
                    ):
                        method(broken, count)
