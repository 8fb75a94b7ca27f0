"""Every method attached to a small model: those of plans with their weights made up, drafts and VASparse."""

from __future__ import annotations

import copyreg
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import foveate
from foveate import FoveateError
from foveate.core.registry import model_methods
from foveate.families import family_of
from foveate.methods.decoding import VASparse
from foveate.methods.decoding.kinds import draft_kinds
from foveate.methods.encoder.dymu import DyMU
from foveate.methods.pre_llm.focusui import Scorer
from foveate.methods.pre_llm.relevance import Mapper
from tests.families.zoo import zoo
from tests.methods.decoder.test_covipal import folder as pruners
from tests.methods.decoder.test_dpn import folder as routers

#: One of each kind that is no plan.
WRITING = ("draft of a chain", "draft of a tree", "vasparse")
#: Everything that can be attached.
EVERY = (*model_methods(), "dymu-virtual", "divprune + fastv", *WRITING)

#: Methods for some models only, with the model of the zoo that they are tested on first; all others: llava.
FIRST = {
    "nested": "foveate-llava-nested",
    "mqt": "foveate-llava-mqt",
    "tokenflex": "foveate-llava-tokenflex",
    "oryx": "foveate-llava-oryx",
}


def is_first(name: str, method: str) -> bool:
    """Whether a method is tested on this model by default."""
    return name == FIRST.get(method, "llava")


def writes(method: str) -> bool:
    """Whether a method must be seen writing: it acts in the language model, or there is nothing else."""
    cls = model_methods().get(method)
    return cls is None or cls.site == "decoder"


def attach(name: str, method: str, model: Any, folder: Path) -> AbstractContextManager[Any]:
    """The method on a model of the zoo; its weights, if it needs any, are written to the folder.

    Raises:
        FoveateError: it is not for this family.
    """
    size = model.config.get_text_config().hidden_size
    if method == "vasparse":
        return foveate.vasparse(model, VASparse(keep=0.6, contrast=0.1))
    if method in WRITING:
        kind = draft_kinds()["flash" if method.endswith("tree") else "specvlm"]
        shape: dict[str, Any] = {"top_k": 2, "tokens": 4} if method.endswith("tree") else {"top_k": 1, "tokens": 3}
        return foveate.speculate(model, kind.new(kind.config_class.of(model)), **shape)
    if method == "divprune + fastv":
        return foveate.compress(model, "divprune:5 + fastv:2@1")
    if method.startswith("dymu"):
        tower = family_of(model).tower(family_of(model).core(model))
        thresholds = (0.2,) * (tower.last_used + 1)
        return foveate.compress(model, DyMU(thresholds, virtual=method.endswith("virtual")))
    cls: Any = model_methods()[method]
    file = folder / f"{method}.safetensors"
    made: dict[str, Callable[[], Any]] = {
        "relevance": lambda: Mapper().save(file),
        "focusui": lambda: Scorer(size).save(file),
        "covipal": lambda: pruners(file, size),
        "dpn": lambda: routers(file, size, favourite=1),
    }
    arguments = ""
    if method in made:
        torch.manual_seed(0)
        made[method]()
        arguments = f"(weights={str(file)!r})"
    budget = "" if cls.budget == "none" else ":4" if method in FIRST else ":3"
    place = "@1" if cls.site == "decoder" else ""
    return foveate.compress(model, f"{method}{arguments}{budget}{place}")


def refused(name: str, method: str, error: FoveateError) -> None:
    """Skip a test of a method that is not for this family; it is for the first."""
    if is_first(name, method):
        raise error
    pytest.skip(str(error))


def prompts(name: str, model: Any) -> list[dict[str, Any]]:
    """Prompts of one shape and of others, so that what belongs to one can be taken for what belongs to another."""
    return [zoo()[name].prompts(model, (((3, 4),),), seed=seed) for seed in range(3)] + [
        zoo()[name].prompts(model, (((2, 3), (4, 3)),), seed=9)
    ]


def call_of(model: Any, method: str) -> Callable[[dict[str, Any]], Tensor]:
    """What is compared: what is written, or else the logits."""
    return partial(_write, model) if writes(method) else partial(_logits, model)


def _logits(model: Any, inputs: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def _write(model: Any, inputs: dict[str, Any]) -> Tensor:
    return model.generate(**inputs, max_new_tokens=3, do_sample=False, pad_token_id=0)


def insides(model: nn.Module) -> dict[str, Any]:
    """All that a module is made of besides its weights: attributes by identity, hooks, and how it is copied."""
    return {name: (type(module), _attributes(module)) for name, module in model.named_modules()} | {
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "configs": str(model.config),  # ty: ignore[unresolved-attribute]
        "copied": sorted(map(str, copyreg.dispatch_table)),
    }


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {
        key: [(name, id(one)) for name, one in value.items()] if isinstance(value, dict) else id(value)
        for key, value in vars(module).items()
        if key != "rope_deltas"  # what models with M-RoPE note of their last call
    }
