"""Times that are compared: their order, and whether they can be relied on."""

from __future__ import annotations

import pytest

from foveate.benchmark import profiling


@pytest.mark.parametrize("count", [1, 2, 3, 17])
def test_the_order_of_turns_favours_nobody(count: int) -> None:
    items = [f"plan {number}" for number in range(count)]
    orders = [profiling.in_turn(items, turn) for turn in range(6)]
    assert all(sorted(order) == sorted(items) for order in orders)
    for one, other in zip(orders[::2], orders[1::2], strict=True):
        assert {one.index(item) + other.index(item) for item in items} == {count - 1}
    assert count < 17 or len({tuple(order) for order in orders}) == 6
    assert orders == [profiling.in_turn(items, turn) for turn in range(6)]


def test_times_that_differ_between_turns_are_named() -> None:
    times = {"full model": [2.0, 2.1, 2.0], "divprune": [1.0, 1.02, 1.04], "random": [1.0, 1.8, 1.9], "once": [1.0]}
    said = profiling.unsteady(times.items())
    assert said.startswith("Unsteady: 1 of 3 times, most that of random (1 to 1.9 s).")
    del times["random"]
    assert profiling.unsteady(times.items()) == ""
    noise = [1.0, 0.9, 1.1] * 2
    assert profiling.unsteady([("divprune", noise)]) and profiling.unsteady([("divprune", noise * 4)]) == ""
    outlier = [1.0, 1.01, 1.02, 1.03, 9.0]  # which a median of five does not feel
    assert profiling.unsteady([("divprune", outlier)]) == ""
