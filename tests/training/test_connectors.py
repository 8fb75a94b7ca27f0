"""Recipes with a connector."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import foveate
from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.llava import FoveateLlavaForConditionalGeneration
from foveate.models.llava_uhd import LlavaUHDForConditionalGeneration
from foveate.training.architectures import ARCHITECTURES, architecture_of
from foveate.training.building import export, new_model
from foveate.training.collate import Collator
from foveate.training.recipe import NewModel
from foveate.training.recipe_file import parse_recipe
from foveate.training.training_model import TrainingModel
from tests.training.test_architectures import CLIP, EXAMPLES, QWEN, QWEN_TEXT, TEXT

TOKENPACKER = {"type": "tokenpacker", "scale": 2}
VIT = {
    "patch_size": 7,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "merger_layer_index": [1],
}
NEW = {
    "llava": NewModel(
        architecture="llava", vision={**CLIP, "num_attention_heads": 3}, text=TEXT, connector=TOKENPACKER
    ),
    "llava-uhd": NewModel(vision=VIT, text=TEXT, images={"min_resolution": None}, connector=TOKENPACKER),
}
CLASSES = {"llava": FoveateLlavaForConditionalGeneration, "llava-uhd": LlavaUHDForConditionalGeneration}


@pytest.fixture(params=NEW)
def made(request):
    return request.param, *new_model(NEW[request.param], seed=0)


def test_a_recipe_builds_trains_and_saves_a_model_with_its_connector(made, tmp_path):
    name, model, processor = made
    assert type(model) is CLASSES[name] and model.config.connector_type == "tokenpacker"
    assert model.config.connector_options == processor.connector_options == {}  # scale 2 is the default
    assert architecture_of(model) is architecture_of(processor) is ARCHITECTURES[name]
    training_model = TrainingModel(model)
    batch = Collator(processor, cells=True)(EXAMPLES)
    connector = model.model.multi_modal_projector
    grids = {"llava": [Grid(4, 4)] * 2, "llava-uhd": [Grid(4, 4), Grid(6, 8)]}[name]
    tokens = sum(connector.output_grid(grid).size for grid in grids)
    assert int((batch["input_ids"] == processor.image_token_id).sum()) == tokens
    assert len(batch["cells"]) == sum(grid.size for grid in grids)  # of the encoder's tokens
    training_model(**batch)["answer_loss"].backward()
    assert all(float(parameter.grad.abs().sum()) > 0 for parameter in connector.parameters())
    parts = {
        ARCHITECTURES[name].part_of(f"model.model.multi_modal_projector.{n}") for n, _ in connector.named_parameters()
    }
    assert parts == {"connector"}
    loaded, _ = foveate.load(export(model, processor, tmp_path / "model", torch.float32), device="cpu")
    assert loaded.config.connector_type == "tokenpacker"


def test_attention_targets_are_places_of_the_merged_tokens(made):
    name, _, processor = made
    batch = Collator(processor, answer_attention=True)(EXAMPLES[:1])
    targets = batch["answer_targets"][0]
    found = targets[targets >= 0]
    first = int((batch["input_ids"][0] == processor.image_token_id).nonzero()[0])
    # Characters at x = 8, 20 and 32 of 56 pixels and y = 20: columns 0, 0 and 1 of 2, row 0.
    assert (found - first).tolist() == [0, 0, 1], name


def test_impossible_connectors():
    for connector, message in (
        ({"type": "plumbing"}, "model.new.connector: there is no connector 'plumbing'"),
        ({"type": "tokenpacker", "spokes": 2}, "model.new.connector: the connector tokenpacker has no option spokes"),
        ({"scale": 2}, "model.new.connector: the key type"),
        ({"type": "tokenpacker", "scale": 3}, "multiples of 3, and this image has 4 x 4 patches"),
    ):
        with pytest.raises(FoveateError, match=message):
            new_model(replace(NEW["llava"], connector=connector), seed=0)
    qwen = NewModel(architecture="qwen2.5-vl", vision=QWEN, text=QWEN_TEXT, connector=TOKENPACKER)
    with pytest.raises(FoveateError, match="qwen2.5-vl has its own; it can be chosen for llava-uhd, llava"):
        new_model(qwen, seed=0)


def test_a_recipe_names_the_layout_of_views(tmp_path):
    images = {"layout": {"name": "llava-uhd", "max_slices": 4}}
    for connector in ({"type": "resampler", "num_queries": 4}, {}):
        model, processor = new_model(replace(NEW["llava"], images=images, connector=connector), seed=0)
        assert type(model) is FoveateLlavaForConditionalGeneration
        vision = model.config.vision_config
        assert (processor.layout.side, processor.layout.patch_size) == (vision.image_size, vision.patch_size)
        training_model = TrainingModel(model)
        batch = Collator(processor)(EXAMPLES)
        views = [view for one in EXAMPLES for image in one.images for view in processor.views_of(*image.size[::-1])]
        assert len(batch["pixel_values"]) == len(views) > len(EXAMPLES)
        training_model(**batch)["answer_loss"].backward()
        assert all(parameter.grad is not None for parameter in model.model.multi_modal_projector.parameters())
        loaded, reader = foveate.load(export(model, processor, tmp_path / "model", torch.float32), device="cpu")
        assert type(loaded) is type(model) and reader.layout == processor.layout


def test_impossible_layouts():
    for images, message in (
        ({"layout": {"name": "mosaic"}}, "model.new.images.layout: a layout is a mapping with one of the names"),
        ({"layout": {"name": "llava-uhd", "spokes": 1}}, "model.new.images.layout: .* has no option spokes"),
        ({"layout": {"name": "llava-uhd"}, "resample": 2}, "model.new.images.resample: the layout of views sets it"),
    ):
        with pytest.raises(FoveateError, match=message):
            new_model(replace(NEW["llava"], images=images), seed=0)


def test_a_recipe_file_names_the_connector():
    content = parse_recipe(
        {
            "output": "runs/x",
            "model": {"new": {"vision": {}, "text": {}, "connector": {"type": "m3", "tokens": 9}}},
            "stages": [
                {"name": "a", "steps": 1, "batch_size": 1, "data": [{"easy_vqa": True}], "train": {"connector": 1e-3}}
            ],
        }
    )
    assert content.model.new is not None and content.model.new.connector == {"type": "m3", "tokens": 9}


def test_a_vision_tower_is_taken_from_another_model(tmp_path):
    source, processor = new_model(NEW["llava"], seed=1)
    folder = str(export(source, processor, tmp_path / "source", torch.float32))
    model, _ = new_model(replace(NEW["llava"], connector={"type": "mlp"}, vision_tower=folder), seed=2)
    theirs = source.model.vision_tower.state_dict()
    for name, weight in model.model.vision_tower.state_dict().items():
        assert torch.equal(weight, theirs[name]), name
    other, _ = new_model(replace(NEW["llava"], connector={"type": "mlp"}), seed=2)
    assert torch.equal(model.lm_head.weight, other.lm_head.weight)  # nothing else changes
    with pytest.raises(FoveateError, match=r"vision_tower: the weights of .* do not fit model.new.vision"):
        new_model(replace(NEW["llava"], vision=NEW["llava"].vision | {"hidden_size": 48}, vision_tower=folder), seed=2)


def test_positions_of_a_smaller_image_are_resized(tmp_path):
    source, processor = new_model(NEW["llava"], seed=1)
    table = source.model.vision_tower.embeddings.position_embedding.weight
    with torch.no_grad():  # a ramp over the rows: resized by two, it is the mean of two rows
        table[1:] = torch.arange(4.0).repeat_interleave(4)[:, None]
    folder = str(export(source, processor, tmp_path / "source", torch.float32))
    small = NEW["llava"].vision | {"image_size": NEW["llava"].vision["image_size"] // 2}
    model, _ = new_model(replace(NEW["llava"], connector={"type": "mlp"}, vision=small, vision_tower=folder), seed=2)
    resized = model.model.vision_tower.embeddings.position_embedding.weight
    assert len(resized) == 5 and torch.equal(resized[0], table[0])
    rows = resized[1:].view(2, 2, -1)
    assert torch.allclose(rows[:, 0], rows[:, 1], atol=1e-5)
    assert torch.allclose(rows.sum(0), torch.full_like(rows[0], 3.0), atol=1e-5)  # symmetric around the middle
    assert rows[0].max() < 1.01 and rows[1].min() > 1.99
