"""Models of any precision, and any precision that new tensors are made in, under every method."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import foveate
from foveate.core.method import Site
from foveate.core.registry import methods_at
from tests.families.zoo import zoo
from tests.runtime.matrix import steps


def plans() -> list[str]:
    """A plan for every method of every site that runs without trained weights."""
    inside = [
        name if cls.budget == "none" else f"{name}:50%@1"
        for name, cls in methods_at(Site.DECODER).items()
        if not cls.trained
    ]
    return [*steps(), *inside, "downsample:4", "fourier:4", "tome:4", "token-transforming:4"]


def logits(model: Any, inputs: dict[str, Any], plan: str) -> torch.Tensor:
    pixels = {"pixel_values": inputs["pixel_values"].to(model.dtype)}
    with foveate.compress(model, plan), torch.no_grad():
        output = model(**{**inputs, **pixels})
        written = model.generate(**{**inputs, **pixels}, max_new_tokens=2, do_sample=False)
    assert written.shape[1] == inputs["input_ids"].shape[1] + 2
    return output.logits


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("plan", plans())
def test_a_model_of_any_precision(plan: str, dtype: torch.dtype):
    found = zoo()["llava"]
    inputs = found.prompts(found.model(), [((3, 4),)])
    model = copy.deepcopy(found.model()).to(dtype)
    got = logits(model, inputs, plan)
    assert got.dtype == dtype
    assert got.isfinite().all()


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("plan", plans())
def test_what_new_tensors_are_made_in_changes_nothing(plan: str, default: torch.dtype):
    found = zoo()["llava"]
    inputs = found.prompts(found.model(), [((3, 4),)])
    expected = logits(found.model(), inputs, plan)
    torch.set_default_dtype(default)
    try:
        got = logits(found.model(), inputs, plan)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
