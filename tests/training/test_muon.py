"""Muon and AdamW as one optimiser."""

import copy

import pytest
import torch
from torch import nn

from foveate.training.muon import MuonAdamW, orthogonalised
from foveate.training.recipe_file import parse_recipe
from foveate.training.run import Run
from foveate.training.trainer import StageTrainer
from tests.training.small_training import EVERYTHING, recipe, small_stage

BETAS = (0.9, 0.95)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 4))


def groups_of(model: nn.Module, rate: float = 1e-2) -> list[dict]:
    """Biases first, so that the optimiser's order of groups is not the caller's."""
    tensors = list(model.parameters())
    return [
        {"params": [t for t in tensors if t.ndim == 1], "lr": rate, "weight_decay": 0.0, "muon": False},
        {"params": [t for t in tensors if t.ndim == 2], "lr": rate, "weight_decay": 0.1, "muon": True},
    ]


def learn(model: nn.Module, optimizers: list[torch.optim.Optimizer], steps: int, start: int = 0) -> None:
    for step in range(start, start + steps):
        torch.manual_seed(step)
        for optimizer in optimizers:
            optimizer.zero_grad()
        model(torch.randn(8, 6)).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()


def test_each_part_steps_as_it_does_alone():
    model = network()
    alone = copy.deepcopy(model)
    biases, matrices = groups_of(alone)
    learn(model, [MuonAdamW(groups_of(model), BETAS)], 5)
    muon = torch.optim.Muon([matrices], adjust_lr_fn="match_rms_adamw")
    learn(alone, [muon, torch.optim.AdamW([biases], betas=BETAS)], 5)
    for name, tensor in alone.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor)


def test_an_update_of_a_matrix_is_nearly_orthogonal():
    model = network()
    before = model[0].get_parameter("weight").detach().clone()
    groups = groups_of(model)
    groups[1]["weight_decay"] = 0.0
    learn(model, [MuonAdamW(groups, BETAS)], 1)
    values = torch.linalg.svdvals(before - model[0].get_parameter("weight").detach()) / (1e-2 * 0.2 * 10**0.5)
    assert 0.5 < values.min() <= values.max() < 1.5  # five Newton-Schulz steps bring them near 1, not to it


@pytest.mark.parametrize("saved", [False, True])
def test_a_schedule_reaches_both_parts(saved):
    model = network()
    optimizer = MuonAdamW(groups_of(model), BETAS)
    if saved:
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    before = copy.deepcopy(model.state_dict())
    learn(model, [optimizer], 2)
    for name, tensor in before.items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_a_saved_state_goes_on_exactly(tmp_path):
    model = network()
    optimizer = MuonAdamW(groups_of(model), BETAS)
    learn(model, [optimizer], 4)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    later = copy.deepcopy(model)
    learn(model, [optimizer], 4, start=4)
    other = MuonAdamW(groups_of(later), BETAS)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    learn(later, [other], 4, start=4)
    for name, tensor in model.state_dict().items():
        assert torch.equal(later.state_dict()[name], tensor)


@pytest.mark.parametrize("muon", [True, False])
def test_one_kind_of_parameters_is_enough(muon):
    model = network()
    groups = [group for group in groups_of(model) if group["muon"] is muon]
    before = copy.deepcopy(model.state_dict())
    learn(model, [MuonAdamW(groups, BETAS)], 1)
    changed = {name for name, tensor in before.items() if not torch.equal(model.state_dict()[name], tensor)}
    assert changed == ({"0.weight", "2.weight"} if muon else {"0.bias", "2.bias"})


def test_muon_moves_matrices_only():
    with pytest.raises(ValueError, match="moves matrices"):
        MuonAdamW([{"params": list(network().parameters()), "lr": 0.1, "muon": True}], BETAS)


def test_a_stage_gives_muon_its_inner_matrices(tmp_path, monkeypatch):
    data = [{"rendered": {"tasks": {"read_word": 1}, "sizes": {"width": [64, 96], "height": [64, 64]}}}]
    stage = small_stage(
        data, optimizer="muon", steps=2, train=EVERYTHING | {"heads": 1e-3}, loss={"answer": 1, "cells": 0.1}
    )
    made = []
    create = StageTrainer.create_optimizer

    def watched(trainer, model=None):
        made.append((trainer.model, create(trainer, model)))
        return made[-1][1]

    monkeypatch.setattr(StageTrainer, "create_optimizer", watched)
    Run(parse_recipe(recipe(tmp_path / "out", stage)), workers=0).train()
    learner, optimizer = made[0]
    assert isinstance(optimizer, MuonAdamW)
    part = {id(tensor): group["part"] for group in optimizer.param_groups for tensor in group["params"]}
    muon = {id(tensor) for group in optimizer.param_groups if group["muon"] for tensor in group["params"]}
    named = dict(learner.named_parameters())
    assert set(part) == {id(tensor) for tensor in named.values() if tensor.requires_grad}
    for name, tensor in named.items():
        inner = tensor.ndim == 2 and "emb" not in name and part[id(tensor)] != "heads"
        assert (id(tensor) in muon) == inner, name
    assert {part[tensor] for tensor in muon} == {"vision_tower", "stages", "connector", "language_model"}


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (7, 7)])
def test_the_iteration_in_float32_gives_singular_values_near_one(shape):
    torch.manual_seed(1)
    values = torch.linalg.svdvals(orthogonalised(torch.randn(3, *shape), torch.float32))
    assert 0.5 < values.min() <= values.max() < 1.5


def test_both_precisions_of_the_iteration_move_alike():
    one, other = network(), network()
    learn(one, [MuonAdamW(groups_of(one), BETAS, torch.float32)], 3)
    learn(other, [MuonAdamW(groups_of(other), BETAS, torch.bfloat16)], 3)
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], tensor, atol=2e-3, rtol=0)
