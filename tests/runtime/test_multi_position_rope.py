"""Tokens that carry several positions, against angles worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import foveate
from foveate import FoveateError
from foveate.core.sequence import PlacedSelection
from foveate.core.tokens import Selection
from foveate.methods.pre_llm.ppe import rotary_angles, rotary_ids
from foveate.runtime.multi_position_rope import MultiPositionRoPE, member_position_ids
from foveate.runtime.patches import Patches
from tests.families.zoo import zoo


def _rotations(model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """cos and sin of the prompt as the first layer gets them."""
    seen: dict[str, Any] = {}
    layer = model.model.language_model.layers[0]
    hook = layer.register_forward_pre_hook(lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True)
    with torch.no_grad():
        model(**inputs)
    hook.remove()
    return seen["position_embeddings"]


@pytest.mark.parametrize("name", ["llava", "qwen2.5-vl", "qwen3-vl"])
def test_merged_tokens_are_rotated_by_their_members(name: str) -> None:
    specimen = zoo()[name]
    model = specimen.model()
    inputs = specimen.prompts(model, [((4, 4),)])
    text = model.model.language_model
    seen: dict[str, Any] = {}
    hook = text.register_forward_pre_hook(lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True)
    with torch.no_grad():
        model(**inputs)
    hook.remove()
    with foveate.compress(model, "ppe(members=2):4") as handle:
        cos, sin = _rotations(model, inputs)
        selection = handle.report().images[0].selection
    start = int((inputs["input_ids"][0] == 119).nonzero()[0])
    ids = seen.get("position_ids")
    ids = torch.arange(inputs["input_ids"].shape[1])[None] if ids is None else ids
    own = ids[..., 0, start : start + 16] if ids.ndim == 3 else ids[0, start : start + 16]
    parameters = text.config.rope_parameters
    sections = tuple(parameters.get("mrope_section") or (cos.shape[-1] // 2,))
    interleaved = bool(parameters.get("mrope_interleaved"))
    own = own[-len(sections) :] if own.ndim == 2 else own
    assert selection.positions is not None
    angles = rotary_angles(
        rotary_ids(own, selection.positions, sections, interleaved=interleaved), text.rotary_emb.inv_freq
    )
    angles = torch.cat([angles, angles], dim=-1)
    torch.testing.assert_close(cos[0, start : start + 4], angles.cos())
    torch.testing.assert_close(sin[0, start : start + 4], angles.sin())


def test_tokens_of_one_member_are_rotated_as_ever() -> None:
    model = zoo()["llava"].model()
    columns = torch.tensor([[-1, 0, 2, 3]])
    selection = Selection(torch.tensor([0, 2]), positions=torch.tensor([[0, 0], [2, 2]]))
    chosen = [PlacedSelection(0, torch.tensor([0, 1, 2]), selection)]
    ids = member_position_ids(torch.tensor([[0, 5, 7, 8]]), torch.tensor([[5, 6, 7, 8]]), columns, chosen)
    assert [member.tolist() for member in ids] == [[[0, 5, 7, 8]]] * 2
    rotary = model.model.language_model.rotary_emb
    x = torch.zeros(1, 4, 1)
    before = rotary(x, ids[0])
    carrying = MultiPositionRoPE(model.model.language_model)
    with Patches() as patches:
        carrying.attach(patches)
        with carrying.use_positions(ids):
            for now, then in zip(rotary(x, ids[0]), before, strict=True):
                assert torch.equal(now, then)
    assert not rotary._forward_hooks


def test_positions_that_are_counted_anew_cannot_be_carried() -> None:
    specimen = zoo()["llava"]
    model = specimen.model()
    with (
        foveate.compress(model, "ppe:4", positions="contiguous"),
        pytest.raises(FoveateError, match="several original positions"),
    ):
        model(**specimen.prompts(model, [((1, 1),)]))
