"""Loops that people write around a model: caches of all kinds, one token at a time or several, second turns."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, QuantizedCache, StaticCache

import foveate
from foveate import compat
from foveate.families import family_of
from tests.families.zoo import Specimen, zoo
from tests.runtime.matrix import inside_pairs, pairs
from tests.runtime.test_promises import compress

ONE = (((3, 4),),)
STEPS = 4
#: Arguments that have a value for every token, beside ids and mask.
TYPES = ("token_type_ids", "mm_token_type_ids")


def greedy(model: Any, inputs: dict[str, Any], **options: Any) -> list[int]:
    options["bad_words_ids"] = [[token] for token in range(100, 120)]
    tokens = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False, pad_token_id=0, **options)
    return tokens[0, inputs["input_ids"].shape[1] :].tolist()


class Loop:
    """One conversation, decoded by hand."""

    def __init__(self, specimen: Specimen, inputs: dict[str, Any], **options: Any) -> None:
        self.model, self.inputs = specimen.model(), inputs
        self.family = family_of(self.model)
        self.axes = hasattr(self.family.core(self.model), "get_rope_index")
        with torch.no_grad():
            self.output = self.model(**inputs, **options)
        self.cache = compat.cache_of(self.output)
        self.mask = inputs["attention_mask"]

    def write(self, tokens: list[int]) -> Tensor:
        """Logits (n, V) after each of `tokens`, read in one pass."""
        ids = torch.tensor([tokens])
        self.mask = torch.cat([self.mask, torch.ones_like(ids)], dim=1)
        # Models with positions of several axes work them out from whole conversations, unless there is no mask.
        given = {} if self.axes else {"attention_mask": self.mask}
        for name in TYPES:
            if name in self.inputs:
                given[name] = torch.full_like(ids, self.family.answer_type)
        with torch.no_grad():
            self.output = self.model(input_ids=ids, **given, **compat.cache_argument(self.cache))
        return self.output.logits[0]

    @property
    def next(self) -> int:
        """The likeliest token that is no placeholder."""
        return int(self.output.logits[0, -1, :100].argmax())


def sample() -> list[Any]:
    """No plan and one on every model, every plan on one; the other pairs are `slow`."""
    found, met = [], set()
    for pair in [*pairs(), *inside_pairs()]:
        name, plan = pair.values
        quick = not pair.marks and not {f"model {name}", plan} <= met
        if quick:
            met |= {f"model {name}", plan}
        found.append(pytest.param(*pair.values, marks=() if quick else pytest.mark.slow, id=pair.id))
    return [*((name, None) for name in sorted(zoo())), *found]


@pytest.mark.parametrize(("name", "plan"), sample())
def test_decoding_by_hand_is_generating(name: str, plan: str | None) -> None:
    """The model makes the cache itself, as `use_cache` or its configuration says."""
    specimen = zoo()[name]
    model, inputs = specimen.model(), specimen.prompts(specimen.model(), ONE)
    with contextlib.nullcontext() if plan is None else compress(specimen, plan):
        expected = greedy(model, inputs)
        for options in ({"use_cache": True}, {}):
            loop, found = Loop(specimen, inputs, **options), []
            for _ in range(STEPS):
                found.append(loop.next)
                loop.write(found[-1:])
            assert found == expected, options
        loop = Loop(specimen, inputs)
        single = torch.cat([loop.write([token]) for token in expected])
        if plan is None or not plan.startswith("corematching"):  # reads what is not written with all neurons
            loop = Loop(specimen, inputs)
            torch.testing.assert_close(loop.write(expected), single, atol=1e-4, rtol=1e-3)


CACHES: dict[str, Callable[[Any], Any]] = {
    "dynamic": lambda config: DynamicCache(config=config),
    "dynamic without its configuration": lambda config: DynamicCache(),
    "static": lambda config: StaticCache(config, max_cache_len=64),
    "quantised": lambda config: QuantizedCache("quanto", config, nbits=4, q_group_size=8, residual_length=64),
}


# Quanto compiles its kernels first, for most of a minute.
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow if kind == "quantised" else ()) for kind in CACHES]
)
@pytest.mark.parametrize("plan", ["divprune:3", "fastv:3@1", "zipvl@1", "cmai@1", "corematching@1"])
def test_a_given_cache_is_what_generate_makes_of_it(plan: str, kind: str) -> None:
    specimen = zoo()["llava"]
    model, inputs = specimen.model(), specimen.prompts(specimen.model(), ONE)
    if kind == "quantised":
        pytest.importorskip("optimum.quanto")

    def fresh() -> Any:
        return CACHES[kind](model.config.get_text_config())

    with foveate.compress(model, plan):
        expected = greedy(model, inputs, **compat.cache_argument(fresh()))
        if kind != "quantised" and (kind, plan) != ("static", "zipvl@1"):  # fixed memory holds no few bits
            assert expected == greedy(model, inputs)
        loop, found = Loop(specimen, inputs, **compat.cache_argument(fresh())), []
        for _ in range(STEPS):
            found.append(loop.next)
            loop.write(found[-1:])
        assert found == expected


@pytest.mark.parametrize("plan", ["divprune:3", "fastv:3@1"])
@pytest.mark.parametrize(
    "name", [name for name, one in sorted(zoo().items()) if foveate.families.families()[one.family].decoder]
)
def test_a_second_turn_with_types_of_new_tokens_alone_is_one_with_types_of_all(name: str, plan: str) -> None:
    specimen = zoo()[name]
    model = specimen.model()
    first, second = (specimen.prompts(model, ((size,),), seed=seed) for size, seed in (((3, 4), 0), ((4, 3), 5)))
    types = [key for key in TYPES if key in first]
    length, new = first["input_ids"].shape[1], second["input_ids"].shape[1]
    mask = torch.ones(1, length + new, dtype=torch.int64)
    core = family_of(model).core(model)
    given = {"attention_mask": mask}
    if hasattr(core, "get_rope_index"):
        given["position_ids"] = torch.arange(length, length + new).expand(3, 1, -1)
    found = []
    with foveate.compress(model, plan), torch.no_grad():
        for everything in (False, True):
            cache = DynamicCache(config=model.config.get_text_config())
            model(**first, **compat.cache_argument(cache))
            turn = {**second, **given}
            if everything:
                turn |= {key: torch.cat([first[key], second[key]], dim=1) for key in types}
            found.append(model(**turn, **compat.cache_argument(cache)).logits)
    torch.testing.assert_close(found[0], found[1])
