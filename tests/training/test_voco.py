"""Recipes with VoCo tokens: what they train, and the folder that answers through them."""

from __future__ import annotations

import pytest
import torch

import foveate
from foveate import FoveateError
from foveate.image_kv_cache import ImageMemory
from foveate.training.building import build_model
from foveate.training.recipe import ModelChoice
from foveate.training.recipe_file import parse_recipe
from foveate.training.run import Run
from tests.training.small_training import read_log, recipe, small_stage, write_conversations

RATES = dict.fromkeys(("vision_tower", "stages", "connector", "language_model"), 5e-3)


def content(folder, *stages, voco=2):
    found = recipe(folder, *stages, log_every=10, save_every=1000)
    found["model"]["voco"] = voco
    return found


@pytest.fixture
def data(tmp_path):
    return [{"files": {"path": str(write_conversations(tmp_path))}}]


@pytest.mark.slow
def test_a_model_learns_to_answer_through_two_tokens(tmp_path, data):
    stage = small_stage(data, steps=40, batch_size=6, train=RATES)
    run = Run(parse_recipe(content(tmp_path / "out", stage)), workers=0)
    assert run.train().finished
    log = read_log(run.output)
    assert log[-1]["answer_loss"] < 0.7 * log[0]["answer_loss"]
    model, processor = foveate.load(run.output / "model")
    assert (model.config.num_voco_tokens, processor.num_voco_tokens) == (2, 2)
    memory = ImageMemory(model, processor, tmp_path / "3.png")
    answer = foveate.ask(tmp_path / "3.png", "Read.", (model, processor), max_new_tokens=8)
    assert memory.ask("Read.", 8) == answer.text
    assert set(memory.lengths) == {memory.tokens - answer.tokens.read}

    # The folder is trained on as it is, and refuses what its tokens hide.
    more = recipe(tmp_path / "more", small_stage(data, steps=1), model={"from": str(run.output / "model")})
    assert Run(parse_recipe(more), workers=0).train().finished
    assert foveate.load(tmp_path / "more" / "model")[0].config.num_voco_tokens == 2
    pointing = small_stage(data, steps=1, loss={"answer_attention": 1})
    more = recipe(tmp_path / "other", pointing, model={"from": str(run.output / "model")})
    with pytest.raises(FoveateError, match="stage one: attention supervision needs text that attends"):
        Run(parse_recipe(more), workers=0).train()


def test_a_stopped_run_goes_on_as_if_it_had_never_stopped(tmp_path, data):
    whole, parts = (
        Run(parse_recipe(content(tmp_path / name, small_stage(data, steps=2)) | {"log_every": 1}), workers=0)
        for name in ("whole", "parts")
    )
    whole.train()
    while not parts.train(max_minutes=0).finished:
        pass
    assert [entry["loss"] for entry in read_log(whole.output)] == [entry["loss"] for entry in read_log(parts.output)]


def test_new_rows_depend_on_the_seed_alone_and_the_others_stay():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    embedded, _ = foveate.load(None, dtype="float32", device="cpu")
    first, second, other = (build_model(ModelChoice("embedded", voco=2), seed)[0] for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    rows = [model.get_input_embeddings().weight.detach() for model in (first, second, other)]
    token = first.config.voco_token_id
    assert torch.equal(rows[0][:token], embedded.get_input_embeddings().weight[:token])
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0][token], rows[2][token])
    assert first.lm_head.weight.shape == rows[0].shape


@pytest.mark.parametrize(
    ("voco", "changes", "words"),
    [
        (0, {}, r"recipe\.model\.voco: 0 must be at least 1"),
        ("two", {}, r"recipe\.model\.voco: expected a whole number"),
        (2, {"plan": "fastv:50%"}, r"recipe\.stages\[0\]\.plan: with model\.voco text sees no visual token"),
        (2, {"loss": {"answer_attention": 1}}, r"recipe\.stages\[0\]\.loss\.answer_attention: with model\.voco"),
    ],
)
def test_mistakes_are_named(voco, changes, words):
    with pytest.raises(FoveateError, match=words):
        parse_recipe(content("out", small_stage([{"rendered": {}}], **changes), voco=voco))


def test_other_architectures_are_refused():
    new = {
        "architecture": "llava",
        "vision": {"image_size": 32, "patch_size": 16, "hidden_size": 32, "num_attention_heads": 2},
        "text": {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    }
    model = {"new": new, "voco": 1}
    with pytest.raises(FoveateError, match="VoCo tokens are for llava-uhd models, not for llava"):
        build_model(parse_recipe(recipe("out", small_stage([{"rendered": {}}]), model=model)).model, 0)
