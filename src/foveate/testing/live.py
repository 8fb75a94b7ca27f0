"""Tests that every method must pass on a live model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from foveate.core.method import Method, Site
from foveate.core.plan import Budget, Plan, Step
from foveate.runtime import Handle
from foveate.runtime import compress as attach
from foveate.testing.promises import Promises
from foveate.testing.small_model import TEXT, VOCABULARY, small_model, small_prompts

#: Attaches a plan, as `foveate.compress` does.
Compress = Callable[[Any, Any], Handle]


def logits(model: Any, inputs: dict[str, Any]) -> Tensor:
    """Those of one pass."""
    with torch.no_grad():
        return model(**inputs).logits


def answers(model: Any, inputs: dict[str, Any], **options: Any) -> list[list[int]]:
    """The first tokens that the model writes."""
    # A model with random weights may write placeholders, which a pass without a cache would take for an image's.
    options["bad_words_ids"] = [[token] for token in range(TEXT, VOCABULARY)]
    tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False, pad_token_id=0, **options)
    return tokens[:, inputs["input_ids"].shape[1] :].tolist()


def keeping_everything_changes_nothing(
    model: Any, inputs: dict[str, Any], plan: Any, compress: Compress = attach, tolerance: float = 0.0
) -> None:
    """A budget of all tokens leaves every number as it was, and the report says so."""
    before = logits(model, inputs)
    with compress(model, plan) as handle:
        torch.testing.assert_close(logits(model, inputs), before, rtol=tolerance, atol=tolerance)
        report = handle.report()
        assert report.tokens_kept == report.tokens_left == report.tokens_in > 0
        assert report.inert and "nothing was left out" in str(report) and report.as_json()["inert"]


def restoring_leaves_the_model_as_it_was(
    model: Any, inputs: dict[str, Any], plan: Any, compress: Compress = attach
) -> None:
    """After `restore` the model says what it said, and has the weights, attributes, hooks and config that it had."""
    before = logits(model, inputs)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    inside = {module: insides(module) for module in model.modules()}
    with compress(model, plan):
        logits(model, inputs)
    assert torch.equal(logits(model, inputs), before)
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert inside == {module: insides(module) for module in model.modules()}


def insides(module: Any) -> dict[str, Any]:
    """Names of a module's attributes, its config by identity, its hooks; `transformers` has a few hooks of its own."""
    hooks = {key: list(value) for key, value in vars(module).items() if key.endswith("_hooks")}
    return {"names": sorted(vars(module)), "config": id(vars(module).get("config")), **hooks}


def a_cache_changes_nothing(model: Any, inputs: dict[str, Any], plan: Any, compress: Compress = attach) -> None:
    """Writing with a cache is writing without one, and its first token is that of one pass."""
    with compress(model, plan):
        with_cache = answers(model, inputs)
        assert with_cache == answers(model, inputs, use_cache=False)
        assert [row[0] for row in with_cache] == logits(model, inputs)[:, -1, :TEXT].argmax(dim=-1).tolist()


def the_same_again(model: Any, inputs: dict[str, Any], plan: Any, compress: Compress = attach) -> None:
    """Two passes give the same numbers, and leave the global random state alone."""
    with compress(model, plan):
        state = torch.get_rng_state()
        first = logits(model, inputs)
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(logits(model, inputs), first)


class LivePromises(Promises):
    """Tests that every method must pass on a live model: a small LLaVA with a CLIP encoder and random weights."""

    def plan(self, method: Method, budget: Budget) -> Plan:
        """The method with a budget, if it takes one, at layer 1 if it acts inside the language model."""
        layers = (1,) if method.takes_layers and not method.trained else ()
        return Plan((Step(method, None if method.budget == "none" else budget, layers),))

    def test_keeping_everything_changes_nothing(self, method: Method) -> None:
        """A full budget changes no bit; inside layers and encoders it may round."""
        if method.budget == "none":
            pytest.skip("takes no budget")
        tolerance = 0.0 if method.site in (Site.PRE_LLM, Site.IMAGE) else 1e-5
        plan = self.plan(method, Budget(fraction=1.0))
        keeping_everything_changes_nothing(small_model(), small_prompts(), plan, tolerance=tolerance)

    def test_restoring_leaves_the_model_as_it_was(self, method: Method) -> None:
        """Taking it off leaves no trace."""
        restoring_leaves_the_model_as_it_was(small_model(), small_prompts(), self.plan(method, Budget(tokens=3)))

    def test_the_announced_number_stays(self, method: Method) -> None:
        """Every image keeps as many tokens as the budget says."""
        plan = self.plan(method, Budget(tokens=3))
        with attach(small_model(), plan) as handle:
            logits(small_model(), small_prompts())
            images = handle.report().images
        assert len(images) == 3
        for image in images:
            remaining = image.layers[-1].tokens_kept if image.layers else image.tokens_kept
            assert 0 <= remaining <= image.tokens_in
            if method.static_count and method.budget != "none":
                assert remaining == 3

    def test_a_cache_changes_nothing(self, method: Method) -> None:
        """Writing with a cache is writing without one, unless the method says that its cache is not exact."""
        if not getattr(method, "exact_cache", True):
            pytest.skip("says that its cache is not exact")
        a_cache_changes_nothing(small_model(), small_prompts(), self.plan(method, Budget(tokens=3)))

    def test_the_same_again(self, method: Method) -> None:
        """Two passes give the same numbers, and leave the global random state alone."""
        the_same_again(small_model(), small_prompts(), self.plan(method, Budget(tokens=3)))
