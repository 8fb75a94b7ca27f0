"""Whole training runs of recipes whose vision tower is an encoder of foveate."""

from __future__ import annotations

import pytest
from PIL import Image

import foveate
from foveate.models.encoders import all_encoders, encoder_named
from foveate.training.recipe_file import parse_recipe
from foveate.training.run import Run
from tests.models.encoders.small_encoders import fields_of, small_config
from tests.training.small_training import TEXT, read_log, recipe, small_stage, write_conversations


# One encoder by default: models with all of them are trained in tests/models/llava/test_llava_encoders.py.
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == "lookupvit" else pytest.mark.slow) for name in sorted(all_encoders())],
)
def test_a_recipe_trains_an_encoder_and_the_model_answers(name, tmp_path):
    data = [{"files": {"path": str(write_conversations(tmp_path))}}]
    train = dict.fromkeys(("vision_tower", "connector", "language_model"), 3e-3)
    stage = small_stage(data, steps=12, train=train)
    new = {"architecture": "llava", "vision": {"type": name, **fields_of(name)}, "text": TEXT}
    run = Run(parse_recipe(recipe(tmp_path / "out", stage, model={"new": new})), workers=0)
    result = run.train()
    assert result.finished
    log = read_log(run.output)
    assert log[-1]["answer_loss"] < log[0]["answer_loss"]
    model, _ = foveate.load(run.output / "model", device="cpu")
    assert type(model.model.vision_tower) is encoder_named(name)
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())
    answer = foveate.ask(Image.new("RGB", (64, 32), "white"), "Read.", model=str(run.output / "model"))
    assert answer.tokens.read == small_config(name).output_grid(48, 48).size
