"""Both namings of a LLaVA's tower become the one that vLLM reads; the plug-in itself is tested in vLLM."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from foveate.integrations.vllm.weight_names import as_published

VALUE = torch.zeros(1)


@pytest.mark.parametrize("before", ["", "model."])
def test_names(before: str) -> None:
    clip = SimpleNamespace(vision_config=SimpleNamespace(model_type="clip_vision_model"))
    saved = [f"{before}vision_tower.{inside}encoder.layers.0.mlp.fc1.weight" for inside in ("", "vision_model.")]
    published = f"{before}vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight"
    assert [name for name, _ in as_published(clip, [(name, VALUE) for name in saved])] == [published, published]
    other = "language_model.model.layers.0.mlp.up_proj.weight"
    assert [name for name, _ in as_published(clip, [(other, VALUE)])] == [other]


def test_towers_of_another_kind_keep_theirs() -> None:
    pixtral = SimpleNamespace(vision_config=SimpleNamespace(model_type="pixtral"))
    name = "vision_tower.transformer.layers.0.attention.q_proj.weight"
    assert list(as_published(pixtral, [(name, VALUE)])) == [(name, VALUE)]
