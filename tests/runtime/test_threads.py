"""Threads that share a model under any method get what each gets alone, and leave nothing behind."""

from __future__ import annotations

import copy
import sys
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from foveate import FoveateError
from foveate.runtime.patches import Patches
from foveate.training.methods.shared.relevance_targets import answer_relevance
from tests.families.zoo import zoo
from tests.runtime.every_method import EVERY, attach, call_of, insides, is_first, prompts, refused

ROUNDS = 2
#: Those that other families meet too by default; the first family meets all.
QUICK = ("ppe", "pyramiddrop", "relevance", "draft of a tree")


@pytest.fixture(autouse=True)
def _switching() -> Generator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def cases() -> list[Any]:
    found = []
    for name in sorted(zoo()):
        for method in EVERY:
            quick = is_first(name, method) or (name == "qwen2.5-vl" and method in QUICK)
            marks = () if quick else pytest.mark.slow
            found.append(pytest.param(name, method, marks=marks, id=f"{name}-{method}"))
    return found


@pytest.mark.parametrize(("name", "method"), cases())
def test_threads_get_what_each_gets_alone(name: str, method: str, tmp_path: Path) -> None:
    model = zoo()[name].model()
    inputs, call = prompts(name, model), call_of(model, method)
    try:
        attach(name, method, model, tmp_path).__exit__(None, None, None)
    except FoveateError as error:
        refused(name, method, error)  # not for this family
    plain = [call(one) for one in inputs]
    before = insides(model)
    with attach(name, method, model, tmp_path):
        try:
            alone = [call(one) for one in inputs]
        except FoveateError as error:
            refused(name, method, error)
        attached = insides(model)
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(call, inputs * ROUNDS))
        assert insides(model) == attached
    for found, expected in zip(together, alone * ROUNDS, strict=True):
        assert torch.equal(found, expected)
    assert insides(model) == before
    assert all(torch.equal(call(one), expected) for one, expected in zip(inputs, plain, strict=True))


def test_a_pass_that_begins_while_hooks_are_added_stays_as_it_is() -> None:
    """torch notes last that a hook takes keyword arguments: without them, it is a pass that began before."""
    module, calls = torch.nn.Linear(2, 2), []
    with Patches() as patches:
        patches.before(module, lambda module, args, kwargs: calls.append("before"), with_kwargs=True)
        patches.after(module, lambda module, args, kwargs, output: calls.append("after"), with_kwargs=True)
        module(torch.zeros(1, 2))
        assert calls == ["before", "after"]
        module._forward_pre_hooks_with_kwargs.clear()
        module._forward_hooks_with_kwargs.clear()
        module(torch.zeros(1, 2))
        assert calls == ["before", "after"]
    assert not module._forward_pre_hooks and not module._forward_hooks


def test_relevance_is_found_while_others_ask() -> None:
    """Training's look into a model is the calling thread's alone: the others run as ever, and so do two that look."""
    model = copy.deepcopy(zoo()["llava"].model())
    inputs, call = prompts("llava", model), call_of(model, "divprune")
    answer = torch.tensor([5, 6, 7])
    plain = [call(one) for one in inputs]
    alone = [answer_relevance(model, one, answer) for one in inputs]
    before = insides(model)

    def work(number: int) -> bool:
        one = number % len(inputs)
        if number % 2:
            return torch.equal(answer_relevance(model, inputs[one], answer), alone[one])
        return torch.equal(call(inputs[one]), plain[one])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, [n + n // 8 for n in range(32)]))
    assert insides(model) == before
