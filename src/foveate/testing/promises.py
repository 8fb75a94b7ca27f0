"""Tests that every method must pass, at any site."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, ClassVar

import pytest
import torch

from foveate.core.method import Method
from foveate.core.plan import Budget, Step, parse_plan
from foveate.core.registry import check_method

#: Precisions that models have.
PRECISIONS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Promises:
    """A suite of tests for the methods that a subclass lists."""

    #: What is tested, with the arguments that it needs, such as weights.
    methods: ClassVar[Sequence[Method]] = ()

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Give every test each of the methods."""
        if "method" in metafunc.fixturenames:
            metafunc.parametrize("method", self.methods, ids=lambda method: method.name)

    @pytest.fixture(params=PRECISIONS)
    def default(self, request: pytest.FixtureRequest) -> Generator[torch.dtype]:
        """What new tensors are made in."""
        before = torch.get_default_dtype()
        torch.set_default_dtype(request.param)
        yield request.param
        torch.set_default_dtype(before)

    def test_it_can_be_registered(self, method: Method) -> None:
        """It has a name, a title, a mechanism and a modality, and is a frozen dataclass."""
        check_method(type(method))

    def test_a_plan_is_read_as_it_is_written(self, method: Method) -> None:
        """Its text form, with its arguments and a budget, gives an equal method."""
        step = Step(method, None if method.budget == "none" else Budget(fraction=0.25))
        (again,) = parse_plan(str(step), {method.name: type(method)}).steps
        assert again == step


def chosen_budgets(method: Method, *budgets: int) -> list[int | None]:
    """Those of the budgets that it takes, and None where its own rule decides."""
    unbudgeted: list[int | None] = [] if method.budget == "count" else [None]
    return unbudgeted + ([] if method.budget == "none" else list(budgets))
