"""Shares as counts: whole numbers, as they are written."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foveate.core.counting import share_of
from foveate.core.plan import Budget
from foveate.methods.decoder.corematching import CoreMatching


@given(st.integers(0, 1000), st.integers(0, 100_000))
def test_a_share_of_some_is_exact(thousandths: int, count: int) -> None:
    exact = Fraction(thousandths, 1000) * count
    assert share_of(thousandths / 1000, count) == round(exact)
    assert share_of(thousandths / 1000, count, "down") == floor(exact)
    assert share_of(thousandths / 1000, count, "up") == ceil(exact)


@given(st.integers(1, 60), st.integers(1, 60), st.lists(st.integers(0, 5000), min_size=1))
def test_fractions_are_what_they_were_divided_from(top: int, bottom: int, counts: list[int]) -> None:
    exact = [Fraction(top, bottom) * count for count in counts]
    many = torch.tensor(counts)
    assert share_of(top / bottom, many, "down").tolist() == [floor(one) for one in exact]
    assert share_of(top / bottom, many, "up").tolist() == [ceil(one) for one in exact]
    assert share_of(top / bottom, many).tolist() == [round(one) for one in exact]


@pytest.mark.parametrize(
    ("share", "count", "down", "up"), [(0.29, 100, 29, 29), (0.07, 100, 7, 7), (6 / 7, 35, 30, 30)]
)
def test_products_that_lie_beside_what_is_meant(share: float, count: int, down: int, up: int) -> None:
    assert (share_of(share, count, "down"), share_of(share, count, "up")) == (down, up)
    assert Budget(fraction=0.575).of(100) == 58  # halves to the even number


def test_three_tenths_of_fifty_neurons_are_fifteen() -> None:
    """A sixteenth neuron in the core is the first of those that are no more frequent than others."""
    one = torch.cat([torch.full((1, 15), 2.0), torch.full((1, 35), 1.0)], dim=1) + torch.arange(50) * 1e-3
    assert CoreMatching(active=0.3, neurons=0.32).core(one).tolist() == list(range(16))
    assert CoreMatching(active=0.3, neurons=0.3).core(one).tolist() == list(range(15))
