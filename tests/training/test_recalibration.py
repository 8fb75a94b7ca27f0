"""Feature recalibration distillation of a vision tower while its language model trains."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from foveate.core.errors import FoveateError
from foveate.models.encoders.sit import SiTModel
from foveate.training.building import export, new_model
from foveate.training.collate import Collator
from foveate.training.examples import Example
from foveate.training.losses import counts_of, weighted
from foveate.training.recipe import Losses, NewModel
from foveate.training.recipe_file import parse_recipe
from foveate.training.run import Run
from foveate.training.training_model import TrainingModel
from tests.models.encoders.small_encoders import fields_of
from tests.training.small_training import TEXT, read_log, recipe, small_stage, write_conversations


def new(vision_tower: str | None = None, connector: dict[str, Any] | None = None, **changes: Any) -> NewModel:
    vision = {"type": "sit", **fields_of("sit", **changes)}
    return NewModel(vision, TEXT, architecture="llava", connector=connector or {}, vision_tower=vision_tower)


def examples(count: int = 3) -> list[Example]:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 48, 48, 3), dtype=np.uint8)
    return [Example.of_question(Image.fromarray(image), "What?", "x" * (1 + n)) for n, image in enumerate(pixels)]


def tower_of(model: Any) -> SiTModel:
    return model.model.vision_tower


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    model, processor = new_model(new(slimming=False), seed=5)
    return export(model, processor, tmp_path_factory.mktemp("teacher") / "model", dtype=torch.float32), model


def test_the_loss_is_the_papers_and_teaches_the_tower_alone(teacher):
    folder, source = teacher
    model, processor = new_model(new(str(folder)), seed=0)
    shared = tower_of(source).state_dict()
    started = tower_of(model).state_dict()
    assert all(torch.equal(started[name], value) for name, value in shared.items()) and len(started) > len(shared)

    training_model = TrainingModel(model).train()
    names = set(training_model.state_dict())
    batch = Collator(processor)(examples())
    with training_model.taught_by(tower_of(source)):
        assert set(training_model.state_dict()) == names  # checkpoints do not hold the teacher
        sums = training_model(**batch)
        weighted(sums, counts_of(batch, Losses(answer=1, recalibration=2)), Losses(recalibration=2)).backward()
    with torch.no_grad():
        ours = tower_of(model)(batch["pixel_values"], output_recovered=True).recovered_tokens
        theirs = tower_of(source).eval()(batch["pixel_values"], output_recovered=True).recovered_tokens
    assert len(ours) == 5 and theirs[-1].shape == (3, 9, 24)
    errors = [float(((a - b) ** 2).mean()) for a, b in zip(ours, theirs, strict=True)]
    assert errors[0] > 0  # batch norms of the student are in training mode, and those of the teacher are not
    assert float(sums["recalibration_loss"].detach()) == pytest.approx(3 * sum(errors) / 5, rel=1e-5)
    assert int(sums["recalibration_count"]) == 3 == len(batch["pixel_values"])
    reverse = tower_of(model).get_parameter("reverse.5.token_mlp.fc1.weight").grad
    assert reverse is not None and bool(reverse.abs().sum() > 0)
    assert all(parameter.grad is None for parameter in tower_of(source).parameters())
    assert "recalibration_loss" not in training_model(**batch)
    assert not tower_of(model)._forward_pre_hooks


def test_one_encoding_for_several_lengths_is_compared_once(teacher):
    model, processor = new_model(new(connector={"type": "mqt", "num_heads": 2, "num_queries": 4}), seed=0)
    training_model = TrainingModel(model)
    batch = Collator(processor)(examples(2))
    with training_model.taught_by(tower_of(teacher[1])):
        sums = training_model(**batch, lengths=torch.tensor([1, 2, 4]))
    assert int(sums["recalibration_count"]) == 2


def test_what_cannot_be_taught_is_refused(teacher, model):
    tower = tower_of(teacher[1])
    with (
        pytest.raises(FoveateError, match="teaches a vision tower of the type sit"),
        TrainingModel(model).taught_by(tower),
    ):
        pass
    slimmed = TrainingModel(new_model(new(), seed=0)[0])
    for other, words in (
        (new(), "the teacher slims tokens itself"),
        (new(slimming=False, intermediate_size=48), "the teacher is another network than the student"),
    ):
        with pytest.raises(FoveateError, match=words), slimmed.taught_by(tower_of(new_model(other, seed=0)[0])):
            pass
    with slimmed.taught_by(tower), pytest.raises(FoveateError, match="needs images of 48 x 48 pixels"):
        tower_of(slimmed.model)(torch.zeros(1, 3, 64, 64))


def test_a_recipe_distils_and_resumes(teacher, tmp_path):
    data = [{"files": {"path": str(write_conversations(tmp_path))}}]
    loss = {"answer": 0, "recalibration": 2}
    stage = small_stage(data, steps=6, train={"vision_tower": 3e-3}, loss=loss, teacher=str(teacher[0]))
    vision = {"type": "sit", **fields_of("sit")}
    model = {"new": {"architecture": "llava", "vision": vision, "text": TEXT, "vision_tower": str(teacher[0])}}
    content = recipe(tmp_path / "out", stage, model=model)
    run = Run(parse_recipe(content), workers=0)
    assert not run.train(max_minutes=0).finished
    assert run.train().finished
    log = read_log(run.output)
    assert log[-1]["recalibration_loss"] < log[0]["recalibration_loss"] and "answer_loss" not in log[0]
    assert log[-1]["loss"] == pytest.approx(2 * log[-1]["recalibration_loss"], rel=1e-4)
    for changes, words in (
        ({"teacher": None}, "loss.recalibration and teacher are given together"),
        ({"train": {"connector": 1e-3}, "loss": {"recalibration": 2}}, "trains the vision tower, which is missing"),
    ):
        with pytest.raises(FoveateError, match=words):
            parse_recipe({**content, "stages": [{**stage, **changes}]})
