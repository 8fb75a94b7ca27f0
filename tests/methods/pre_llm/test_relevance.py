"""The explainability-based compressor against loops. There is no public code: only the equations can be checked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from foveate.core.errors import FoveateError
from foveate.core.tokens import Crop, EncoderSpec, Grid, Need, VisualTokens
from foveate.methods.pre_llm.relevance import Mapper, Relevance, mapper_loss, relevance_target, rollout


@pytest.mark.parametrize(("layers", "heads", "size"), [(1, 1, 3), (2, 3, 5), (4, 2, 7)])
def test_rollout_equals_the_loop(layers: int, heads: int, size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    attentions = [torch.rand(heads, size, size, generator=generator).softmax(-1) for _ in range(layers)]
    gradients = [torch.randn(heads, size, size, generator=generator) for _ in range(layers)]
    slow = [[float(i == j) for j in range(size)] for i in range(size)]
    for a, g in zip(attentions, gradients, strict=True):
        m = [[sum(max(0.0, float(a[h, i, j] * g[h, i, j])) for h in range(heads)) / heads for j in range(size)]
             for i in range(size)]  # fmt: skip
        slow = [[slow[i][j] + sum(m[i][k] * slow[k][j] for k in range(size)) for j in range(size)] for i in range(size)]
    torch.testing.assert_close(rollout(attentions, gradients), torch.tensor(slow))


def test_a_token_whose_value_is_masked_out_has_no_relevance() -> None:
    generator = torch.Generator().manual_seed(0)
    attention = torch.rand(2, 5, 5, generator=generator).softmax(-1).requires_grad_()
    value = torch.randn(2, 5, 4, generator=generator)
    value[:, 1] = 0
    (attention @ value)[:, -1].square().sum().backward()
    assert attention.grad is not None
    target = relevance_target(rollout([attention.detach()], [attention.grad]), torch.tensor([4]), torch.arange(4))
    assert target[1] == 0 and abs(float(target.sum()) - 1) < 1e-6
    assert relevance_target(torch.eye(5), torch.tensor([4]), torch.arange(4)).tolist() == [0.25] * 4


def test_mapper_is_resolution_agnostic_learns_and_is_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    mapper = Mapper()
    assert mapper(torch.rand(3, 9)).shape == (3, 9) and mapper(torch.rand(20, 4)).shape == (20, 4)
    attention = torch.rand(6, 6)
    torch.testing.assert_close(mapper(attention), mapper(7 * attention))
    target = (attention**3 / (attention**3).sum()).flatten()
    optimizer = torch.optim.AdamW(mapper.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = mapper_loss(mapper(attention), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.3 * losses[0]
    mapper.save(tmp_path / "mapper.safetensors")
    method = Relevance(str(tmp_path / "mapper.safetensors"))
    measured = {Need("first_layer_attention"): attention.flatten()}
    tokens = VisualTokens.of_grid(torch.randn(36, 4), (6, 6), measured=measured)
    expected = mapper(attention).flatten().topk(9).indices.sort().values
    assert torch.equal(method(tokens, 9).indices, expected)
    holes = torch.arange(36).masked_fill(torch.arange(36) % 6 == 5, -1)
    holes[holes >= 0] = torch.arange(30)
    part = VisualTokens(torch.randn(30, 4), (Crop(holes, Grid(6, 6)),), {Need("first_layer_attention"): torch.rand(30)})
    assert len(method(part, 7)) == 7


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(FoveateError, match="foveate train-method relevance"):
        Relevance().needs(EncoderSpec(4, False))
    with pytest.raises(FoveateError, match="no file"):
        Mapper.load(tmp_path / "none")
    (tmp_path / "other").write_bytes(b"nothing")
    with pytest.raises(FoveateError, match="safetensors"):
        Mapper.load(tmp_path / "other")
