"""Stages of a recipe that train under plans: LLaVolta, PyramidDrop and methods before the language model."""

from __future__ import annotations

import copy

import pytest
import torch

import foveate
from foveate import FoveateError
from foveate.core.network_folder import read_networks
from foveate.methods.decoder.dpn import build
from foveate.runtime import handle_of
from foveate.training.building import build_model
from foveate.training.collate import Collator
from foveate.training.dataset import read_conversations
from foveate.training.recipe_file import parse_recipe
from foveate.training.run import Run
from foveate.training.training_model import TrainingModel
from tests.training.small_training import TEXT, read_log, recipe, small_stage, write_conversations

DEEP = {**TEXT, "num_hidden_layers": 4}


@pytest.fixture
def data(tmp_path):
    return [{"files": {"path": str(write_conversations(tmp_path))}}]


def run_of(output, *stages, **changes) -> Run:
    content = recipe(output, *stages, **changes)
    content["model"]["new"]["text"] = DEEP
    return Run(parse_recipe(content), workers=0)


def schedule(data, steps, **changes):
    """The paper's stages for 4 layers: K = 2, 2, 16 of 32 are 1, 1, 2."""
    plans = {
        "heavy": "pool-decoder:25%@1",
        "light-early": "pool-decoder:50%@1",
        "light": "pool-decoder:50%@2",
        "none": None,
    }
    return [small_stage(data, name=name, steps=steps, plan=plan, **changes) for name, plan in plans.items()]


@pytest.mark.slow
def test_stages_from_heavy_to_none_learn_and_leave_a_model_without_a_plan(tmp_path, data):
    rates = dict.fromkeys(("vision_tower", "stages", "connector", "language_model"), 5e-3)
    stages = schedule(data, 15, batch_size=6, train=rates)
    run = run_of(tmp_path / "out", *stages, log_every=5, save_every=1000)
    assert run.train().finished
    log = read_log(run.output)
    assert [entry.get("plan") for entry in log[::3]] == [
        "pool-decoder:25%@1",
        "pool-decoder:50%@1",
        "pool-decoder:50%@2",
        None,
    ]
    assert log[-1]["answer_loss"] < 0.7 * log[0]["answer_loss"]
    model, _ = foveate.load(run.output / "model")
    assert handle_of(model) is None


@pytest.mark.parametrize("plan", ["pyramiddrop:50%@1,2,3", "fastv:50%@2", "divprune:50% + pool-decoder:50%@1"])
def test_any_plan_trains_and_the_folder_answers_under_it(tmp_path, data, plan):
    rates = dict.fromkeys(("connector", "language_model"), 5e-3)
    run = run_of(tmp_path / "out", small_stage(data, steps=15, batch_size=6, train=rates, plan=plan), log_every=5)
    assert run.train().finished
    log = read_log(run.output)
    assert log[-1]["answer_loss"] < 0.8 * log[0]["answer_loss"]
    model, _ = foveate.load(run.output / "model")
    assert str(handle_of(model).plan) == plan
    again = run.export(tmp_path / "again").model
    assert str(handle_of(foveate.load(again)[0]).plan) == plan


@pytest.mark.slow
def test_routers_of_a_pyramid_learn_with_their_model(tmp_path, data):
    """They need none to begin with; the trained folder has them, and a run that was stopped goes on with them."""
    rates = dict.fromkeys(("connector", "language_model"), 5e-3)
    stage = small_stage(data, steps=4, batch_size=4, train=rates, plan="dpn@1,2")
    whole, parts = (
        run_of(tmp_path / name, copy.deepcopy(stage), log_every=1, save_every=1000) for name in ("whole", "parts")
    )
    assert whole.train().finished
    while not parts.train(max_minutes=0).finished:
        pass
    assert [entry["loss"] for entry in read_log(whole.output)] == [entry["loss"] for entry in read_log(parts.output)]
    folder = whole.export(tmp_path / "again").model
    model, _ = foveate.load(folder)
    plan = handle_of(model).plan
    assert str(plan) == "dpn@1,2" and plan.steps[0].method._scales
    first = TrainingModel(build_model(whole.recipe.model, whole.recipe.seed)[0], whole.recipe.seed)
    with first.under_plan("dpn@1,2"):
        before = {layer: own.state_dict() for layer, own in first.routers.items()}
    for layer, own in read_networks(folder / "dpn", "dpn", build).items():
        assert any(not torch.equal(value, before[str(layer)][name]) for name, value in own.state_dict().items())


@pytest.mark.slow
def test_a_stopped_stage_goes_on_as_if_it_had_never_stopped(tmp_path, data):
    stages = schedule(data, 2)[:2]
    whole, parts = (run_of(tmp_path / name, *copy.deepcopy(stages), log_every=1) for name in ("whole", "parts"))
    whole.train()
    while not parts.train(max_minutes=0).finished:
        pass
    assert [entry["loss"] for entry in read_log(whole.output)] == [entry["loss"] for entry in read_log(parts.output)]


def test_the_learner_takes_the_loss_that_the_model_takes(model, processor, data):
    """A batch whose images differ in size: rows are padded after the pooling."""
    batch = Collator(processor)(read_conversations(data[0]["files"]["path"])[:4])
    model = copy.deepcopy(model).eval()
    training_model = TrainingModel(model)
    with torch.no_grad():
        for plan in ("pool-decoder:50%@1", "pyramiddrop:50%@1"):
            with training_model.under_plan(plan):
                sums = training_model(**batch)
            with foveate.compress(model, plan):
                expected = model(**batch).loss
            torch.testing.assert_close(sums["answer_loss"] / sums["answer_tokens"], expected)
            assert handle_of(model) is None
        torch.testing.assert_close(training_model(**batch)["answer_loss"] / sums["answer_tokens"], model(**batch).loss)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"plan": "pool-decodr:25%@2"}, r"stages\[0\].plan: unknown method 'pool-decodr'; did you mean pool-decoder"),
        ({"plan": "pool-decoder@2"}, r"stages\[0\].plan: pool-decoder needs a budget"),
        ({"plan": "pool-decoder:25%@2", "loss": {"answer_attention": 1}}, "answer_attention supervises attention"),
        (
            {"plan": "pool-decoder:25%", "loss": {"answer": 0, "cells": 1}, "train": {"vision_tower": 1e-3}},
            "a plan needs the language model, which does not run",
        ),
        ({"plan": "tome:50%", "loss": {"cells": 1}}, "read every token of the encoder"),
    ],
)
def test_plans_that_make_no_sense_are_named(changes, words):
    with pytest.raises(FoveateError, match=words):
        parse_recipe(recipe("out", small_stage([{"rendered": {}}], **changes)))


def test_a_plan_that_the_model_cannot_follow_stops_the_run_before_it_starts(tmp_path, data):
    late = small_stage(data, name="late", plan="pool-decoder:50%@7")
    run = run_of(tmp_path / "out", small_stage(data, steps=1), late)
    with pytest.raises(FoveateError, match="acts before layer 7; this language model has layers 1 to 3"):
        run.train()
    assert not run.output.exists()
