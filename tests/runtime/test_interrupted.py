"""An exception in the middle of a pass leaves nothing behind: neither for the next pass, nor on the restored model."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from foveate import FoveateError
from foveate.families import family_of
from foveate.runtime import handle_of
from foveate.runtime.forward_state import LLMForwardState
from tests.checkpointing import checkpoint
from tests.families.zoo import zoo
from tests.heap import new_objects_alone
from tests.runtime.every_method import EVERY, WRITING, attach, call_of, insides, is_first, prompts, refused, writes

#: Families in whose models every method is interrupted by default.
QUICK = ("llava",)


class Interrupted(Exception):
    """Raised by a test in the middle of a pass."""


def places(model: Any) -> dict[str, nn.Module]:
    """Modules in the middle of a model: of encoder blocks, of decoder layers, and behind them."""
    family = family_of(model)
    core = family.core(model)
    text: Any = family.text(core)
    block: Any = family.blocks(core)[1]
    return {
        "encoder": list(block.children())[-1],
        "attention": next(text.layers[1].children()),
        "layer": list(text.layers[1].children())[-1],
        "head": model.get_output_embeddings(),
    }


#: Where, with what, and at which call of the module there; the second one is of a token that is written.
INTERRUPTIONS: tuple[tuple[str, BaseException, int], ...] = (
    ("encoder", Interrupted(), 1),
    ("attention", KeyboardInterrupt(), 1),
    ("layer", Interrupted(), 1),
    ("layer", KeyboardInterrupt(), 2),
    ("head", Interrupted(), 1),
)


@contextmanager
def interrupting(module: nn.Module, error: BaseException, call: int = 1) -> Generator[None]:
    """The n-th call of a module from now on raises."""
    calls = 0

    def hook(module: nn.Module, args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise error

    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def cases(quick: tuple[str, ...] = QUICK) -> list[Any]:
    return [
        pytest.param(
            name,
            method,
            marks=() if name in quick or is_first(name, method) else pytest.mark.slow,
            id=f"{name}-{method}",
        )
        for name in sorted(zoo())
        for method in EVERY
    ]


@pytest.mark.parametrize(("name", "method"), cases())
def test_the_next_pass_is_right(name: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = zoo()[name].model()
    inputs, call = prompts(name, model), call_of(model, method)
    plain = [call(one) for one in inputs]
    before = insides(model)
    try:
        handle = attach(name, method, model, tmp_path)
    except FoveateError as error:
        refused(name, method, error)  # not for this family
    with handle:
        try:
            expected = [call(one) for one in inputs]
        except FoveateError as error:
            refused(name, method, error)
        attached = insides(model)
        modules = places(model)
        for place, error, number in INTERRUPTIONS:
            if number > 1 and not writes(method):
                continue
            with interrupting(modules[place], error, number), pytest.raises(type(error)):
                call(inputs[3])
            assert torch.equal(call(inputs[0]), expected[0]), place
        if method not in WRITING:
            _inside_the_method(model, lambda: call(inputs[3]), monkeypatch)
        assert [torch.equal(call(one), other) for one, other in zip(inputs, expected, strict=True)] == [True] * 4
        assert insides(model) == attached
    assert insides(model) == before
    assert all(torch.equal(call(one), other) for one, other in zip(inputs, plain, strict=True))


def _inside_the_method(model: Any, run: Callable[[], Any], patch: pytest.MonkeyPatch) -> None:
    """Each method of the plan that is attached raises once."""
    handle = handle_of(model)
    assert handle is not None

    def failing(*args: Any, **kwargs: Any) -> Any:
        raise Interrupted

    for step in handle.plan.steps:
        if step.method.site in ("image", "connector"):  # a number that others follow: no code of the method runs
            continue
        with patch.context() as context:
            for name in ("select", "schedule", "active_tokens", "attention_mask", "choose"):
                if hasattr(type(step.method), name):
                    context.setattr(type(step.method), name, failing)
            with pytest.raises(Interrupted):
                run()


def learnt(model: Any, inputs: dict[str, Any]) -> list[torch.Tensor]:
    """Gradients of one step."""
    model.zero_grad()
    labels = inputs["input_ids"].clone()
    labels[:, :-2] = -100
    model(**inputs, labels=labels, use_cache=False).loss.backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


#: Methods of every kind, by how they are put into a model.
LEARNING = ("ppe", "relevance", "tome", "dymu-virtual", "pyramiddrop", "fastv", "dpn", "corematching", "cmai", "zipvl")


@pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "reentrant"])
@pytest.mark.parametrize("method", LEARNING)
def test_checkpointed_layers_run_again(method: str, reentrant: bool, tmp_path: Path) -> None:
    """Gradients are those without checkpointing, also after an exception while layers ran again."""
    model = copy.deepcopy(zoo()["llava"].model()).train()
    inputs = prompts("llava", model)
    with attach("llava", method, model, tmp_path):
        expected = [learnt(model, one) for one in inputs[2:]]
    checkpoint(model, reentrant=reentrant)
    before = insides(model)
    with attach("llava", method, model, tmp_path):
        for _ in range(2):  # once more after an exception
            found = [learnt(model, one) for one in inputs[2:]]
            for one, other in zip(found, expected, strict=True):
                assert len(one) == len(other)
                for gradient, wanted in zip(one, other, strict=True):
                    torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=1e-4)
            # The first call of the layer is the forward pass, the second the one for its gradient.
            with interrupting(places(model)["layer"], Interrupted(), 2), pytest.raises(Interrupted):
                learnt(model, inputs[3])
    assert insides(model) == before


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("method", LEARNING)
def test_a_call_with_a_gradient_is_freed(method: str, checkpointed: bool, tmp_path: Path) -> None:
    """Its embeddings, keys and masks are not kept for layers that run again, once none can."""
    model = copy.deepcopy(zoo()["llava"].model()).train()
    inputs = prompts("llava", model)[0]
    if checkpointed:
        checkpoint(model)

    with new_objects_alone(), attach("llava", method, model, tmp_path):
        for _ in range(2):
            learnt(model, inputs)
            model(**inputs, use_cache=False)  # also without a backward pass
            model(**inputs)  # and with a cache
        gc.collect()
        assert not any(type(one) is LLMForwardState for one in gc.get_objects())
