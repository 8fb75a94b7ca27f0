"""Recipes with Vision Remember: the modules train, and the folder has them."""

from __future__ import annotations

import pytest
import torch

import foveate
from foveate import FoveateError
from foveate.loading import load_skeleton
from foveate.training.building import build_model
from foveate.training.recipe import ModelChoice
from foveate.training.recipe_file import parse_recipe
from foveate.training.run import Run
from tests.training.small_training import read_log, recipe, small_stage, write_conversations


@pytest.fixture
def data(tmp_path):
    return [{"files": {"path": str(write_conversations(tmp_path))}}]


def content(folder, *stages, remember=(1,)):
    found = recipe(folder, *stages, log_every=10, save_every=1000)
    found["model"]["remember"] = list(remember)
    return found


def test_modules_train_with_the_connector_and_come_back(tmp_path, data):
    stage = small_stage(data, steps=30, batch_size=6, train={"connector": 5e-3, "language_model": 5e-3})
    run = Run(parse_recipe(content(tmp_path / "out", stage)), workers=0)
    assert run.train().finished
    log = read_log(run.output)
    assert log[-1]["answer_loss"] < 0.8 * log[0]["answer_loss"]
    model, processor = foveate.load(run.output / "model")
    assert model.model.vision_remember["1"].out.weight.any()
    image = tmp_path / "3.png"
    answer = foveate.ask(image, "Read.", (model, processor), max_new_tokens=8).text
    assert foveate.ask(image, "Read.", run.output / "model", max_new_tokens=8).text == answer
    more = recipe(tmp_path / "more", small_stage(data, steps=1), model={"from": str(run.output / "model")})
    assert Run(parse_recipe(more), workers=0).train().finished


def test_a_stopped_run_goes_on_as_if_it_had_never_stopped(tmp_path, data):
    stage = small_stage(data, steps=2)
    whole, parts = (
        Run(parse_recipe(content(tmp_path / name, stage) | {"log_every": 1}), workers=0) for name in ("whole", "parts")
    )
    whole.train()
    while not parts.train(max_minutes=0).finished:
        pass
    assert [entry["loss"] for entry in read_log(whole.output)] == [entry["loss"] for entry in read_log(parts.output)]


def test_new_modules_depend_on_the_seed_alone():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    weights = [
        build_model(ModelChoice("embedded", remember=[1, 3]), seed)[0].model.vision_remember["3"].query.weight
        for seed in (5, 5, 6)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_mistakes_are_named():
    stage = small_stage([{"rendered": {}}], plan="fastv:50%")
    with pytest.raises(FoveateError, match=r"stages\[0\]\.plan: model\.remember needs every visual token"):
        parse_recipe(content("out", stage))
    with pytest.raises(FoveateError, match=r"model\.remember: expected a list"):
        parse_recipe(recipe("out", small_stage([{"rendered": {}}]), model={"from": "embedded", "remember": 2}))
    layers = load_skeleton()[0].config.text_config.num_hidden_layers
    expected = rf"stands before layers 1 to {layers - 1} of this model, each once, not \[{layers}\]"
    with pytest.raises(FoveateError, match=expected):
        build_model(ModelChoice("embedded", remember=[layers]), 0)
