"""Times that are compared: their order, and whether they can be relied on."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest

from foveate.benchmark import profiling
from foveate.benchmark.results import read_results

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
#: Results whose ratios of times are in tables and plots.
FILES = [path for kind in ("speed", "patch-scaling", "next-scale") for path in sorted(RESULTS.glob(f"{kind}-*.json"))]


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


def _turns(row: dict[str, Any]) -> list[float]:
    times = row.get("spread", row["seconds"])
    return times.get("ttft", times)["all"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_committed_times_are_steady(path: Path) -> None:
    """They are not where other work ran at the time; what is compared was measured together."""
    groups: dict[str, list[float]] = {}
    for row in read_results(path)["rows"]:
        groups.setdefault(f"{row.get('model')} {row.get('group')}", []).append(profiling.median_error(_turns(row)))
    unsteady = {group: errors for group, errors in groups.items() if statistics.median(errors) > 0.05}
    assert not unsteady
