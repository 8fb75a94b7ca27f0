"""Training of nested connectors at all their lengths, or at one that is drawn for every batch."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from foveate import FoveateError
from foveate.core.tokens import Grid
from foveate.models.connectors.registry import connector_of_sizes
from foveate.training.batch_stream import BatchStream
from foveate.training.building import new_model
from foveate.training.collate import Collator
from foveate.training.lengths import common_lengths, drawn_length, encoded_once, lengths_of
from foveate.training.recipe import NewModel
from foveate.training.recipe_file import parse_recipe
from foveate.training.run import Run
from foveate.training.sources import open_source
from foveate.training.training_model import TrainingModel
from tests.training.small_training import read_log, recipe, small_stage, write_conversations
from tests.training.test_architectures import CLIP, EXAMPLES, TEXT
from tests.training.test_connectors import VIT

#: Small connectors of 4 x 4 patches, and the lengths that they are trained at.
CONNECTORS: dict[str, tuple[dict[str, Any], list[int]]] = {
    "m3": ({}, [1, 4, 16]),
    "mqt": ({"num_queries": 16, "num_heads": 2, "features_in_keys": True}, [2, 4, 6, 8, 10, 12, 14, 16]),
    "tokenflex": ({"tokens": 16, "lengths": [4, 9, 16]}, [4, 9, 16]),
}


def new(name: str, architecture: str = "llava", **options: Any) -> NewModel:
    connector = {"type": name, **CONNECTORS.get(name, ({}, []))[0], **options}
    if architecture == "llava":
        return NewModel(architecture="llava", vision=CLIP, text=TEXT, connector=connector)
    return NewModel(vision=VIT, text=TEXT, images={"min_resolution": None}, connector=connector)


@pytest.fixture(params=CONNECTORS)
def name(request) -> str:
    return request.param


@pytest.mark.parametrize("architecture", ["llava", "llava-uhd"])
def test_the_loss_and_gradients_are_the_means_of_separate_passes(name, architecture):
    """Separate passes are those of models and processors that are configured for one length each."""
    examples = EXAMPLES if architecture == "llava" else [replace(one, images=[square()]) for one in EXAMPLES]
    model, processor = new_model(new(name, architecture), seed=0)
    training_model = TrainingModel(model)
    batch = Collator(processor, lengths=True)(examples)
    lengths = batch["lengths"].tolist()
    assert lengths == CONNECTORS[name][1]
    sums = training_model(**batch)
    (sums["answer_loss"] / sums["answer_tokens"]).backward()
    losses = []
    gradients = {key: torch.zeros_like(parameter) for key, parameter in model.named_parameters()}
    for length in lengths:
        single, its_processor = new_model(new(name, architecture, tokens=length), seed=0)
        single.load_state_dict(model.state_dict())
        inputs = Collator(its_processor)(examples)
        assert int((inputs["input_ids"] == its_processor.image_token_id).sum()) == length * len(examples)
        losses.append(single.train()(**inputs).loss)
        losses[-1].backward()
        for key, parameter in single.named_parameters():
            if parameter.grad is not None:
                gradients[key] += parameter.grad / len(lengths)
    torch.testing.assert_close(sums["answer_loss"] / sums["answer_tokens"], torch.stack(losses).mean())
    assert len({round(loss.item(), 5) for loss in losses}) > 1
    for key, parameter in model.named_parameters():
        expected = gradients[key]
        found = torch.zeros_like(expected) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-3, msg=key)


def square() -> Image.Image:
    """An image of 56 x 56 pixels, 4 x 4 tokens after the stage of the small LLaVA-UHD."""
    return Image.effect_noise((56, 56), 80).convert("RGB")


def test_the_encoder_runs_once_and_the_language_model_once_a_length():
    model, processor = new_model(new("m3"), seed=0)
    training_model = TrainingModel(model)
    counts = {"vision_tower.encoder": 0, "language_model.layers.0": 0}
    for part in counts:
        module = model.model.get_submodule(part)
        module.register_forward_hook(lambda *_, part=part: counts.update({part: counts[part] + 1}))
    forward = model.model.vision_tower.forward
    training_model(**Collator(processor, lengths=True)(EXAMPLES))
    assert counts == {"vision_tower.encoder": 1, "language_model.layers.0": 3}
    assert model.model.vision_tower.forward == forward
    training_model(**Collator(processor)(EXAMPLES))
    assert counts == {"vision_tower.encoder": 2, "language_model.layers.0": 4}


def test_a_tower_that_was_patched_before_stays_so():
    tower = torch.nn.Linear(2, 2)
    patched = tower.forward = lambda x: x + 1
    with encoded_once(tower):
        assert tower(torch.ones(1)) is tower(torch.zeros(1))
    assert tower.forward is patched


@pytest.fixture
def data(tmp_path):
    return [{"files": {"path": str(write_conversations(tmp_path))}}]


def run_of(output, connector: str, *stages, **changes) -> Run:
    content = recipe(output, *stages, log_every=1, **changes)
    content["model"] = {"new": {name: value for name, value in vars(new(connector)).items() if value is not None}}
    return Run(parse_recipe(content), workers=0)


def test_a_stopped_run_draws_the_lengths_of_one_that_never_stopped(tmp_path, data):
    stage = small_stage(data, steps=4, batch_size=2, accumulate=2, train={"connector": 1e-3, "language_model": 1e-3})
    whole, parts = (run_of(tmp_path / name, "mqt", copy.deepcopy(stage)) for name in ("whole", "parts"))
    whole.train()
    while not parts.train(max_minutes=0).finished:
        pass
    logs = [
        [(entry["step"], entry["loss"], entry["lengths"]) for entry in read_log(run.output)] for run in (whole, parts)
    ]
    assert logs[0] == logs[1]
    drawn = [int(length) for _, _, lengths in logs[0] for length, count in lengths.items() for _ in range(count)]
    assert len(drawn) == 8 and len(set(drawn)) > 1 and set(drawn) <= set(CONNECTORS["mqt"][1])


def test_all_lengths_are_trained_and_logged(tmp_path, data):
    stages = [small_stage(data, name=name, steps=2, lengths=name, batch_size=2) for name in ("full", "all", "sampled")]
    for stage in stages:
        del stage["train"]["stages"]
    run = run_of(tmp_path / "out", "m3", *stages)
    assert run.train().finished
    logged = [entry.get("lengths") for entry in read_log(run.output)]
    assert logged[:2] == [None, None]
    assert logged[2:4] == [dict.fromkeys(("1", "4", "16"), 1)] * 2
    assert [sum(lengths.values()) for lengths in logged[4:]] == [1, 1]


def test_processes_draw_the_same_length(data):
    _, processor = new_model(new("mqt"), seed=0)
    (stage,) = parse_recipe(recipe("out", small_stage(data, steps=5))).stages
    sources = [(open_source(one, 14, seed=5), one.weight) for one in stage.data]
    collate = Collator(processor, lengths=True)
    ranks = [
        [batch["lengths"].tolist() for batch in BatchStream(stage, sources, collate, 9, 0, rank, 2, sampled=True)]
        for rank in range(2)
    ]
    assert ranks[0] == ranks[1] and {len(lengths) for lengths in ranks[0]} == {1}
    assert len({lengths[0] for lengths in ranks[0]}) > 1


def test_every_length_is_equally_likely():
    lengths = torch.tensor([64, 144, 256])
    drawn = torch.cat([drawn_length(lengths, 7, number) for number in range(3000)])
    assert all(900 < int((drawn == length).sum()) < 1100 for length in lengths)


def test_without_the_key_a_stage_does_what_the_paper_does(data):
    def chosen(connector: str, **changes: Any) -> str:
        (stage,) = parse_recipe(recipe("out", small_stage(data, **changes))).stages
        return lengths_of(stage, new_model(new(connector), seed=0)[1])

    assert [chosen(name) for name in ("m3", "mqt", "tokenflex", "mlp")] == ["all", "sampled", "sampled", "full"]
    assert chosen("mqt", lengths="full") == "full"
    assert chosen("m3", lengths="sampled") == "sampled"
    assert chosen("m3", plan="divprune:4") == "full"
    assert chosen("m3", loss={"question_attention": 1}) == "full"
    with pytest.raises(FoveateError, match="nested connectors, and this model has the connector mlp, which has one"):
        chosen("mlp", lengths="all")


def test_a_batch_without_images_has_no_lengths():
    _, processor = new_model(new("m3"), seed=0)
    text = [replace(EXAMPLES[0], images=[], conversations=without_images(EXAMPLES[0].conversations))]
    assert "lengths" not in Collator(processor, lengths=True)(text)


def without_images(conversations):
    return [turn | {"value": turn["value"].replace("<image>", "")} for turn in conversations]


def test_images_of_several_sizes_have_the_lengths_that_all_can_have():
    m3 = connector_of_sizes("m3")
    assert common_lengths(m3, [Grid(4, 4), Grid(8, 8)]) == (1, 4, 16)
    with pytest.raises(FoveateError, match=r"m3 is trained at no number of tokens that .* \(patches: 4 x 6, 6 x 8\)"):
        common_lengths(m3, [Grid(6, 8), Grid(4, 6)])
    with pytest.raises(FoveateError, match="images of one size that is large enough"):
        common_lengths(connector_of_sizes("tokenflex"), [Grid(6, 6)])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lengths": "some"}, "'some' is not possible; possible are full, all, sampled"),
        ({"lengths": "all", "plan": "divprune:4"}, r"stages\[0\].lengths: all is not possible with plan"),
        ({"lengths": "sampled", "loss": {"answer_attention": 1}}, "not possible with loss.answer_attention"),
        (
            {"lengths": "all", "loss": {"answer": 0, "cells": 1}, "train": {"vision_tower": 1e-3}},
            "not possible with loss.answer: 0",
        ),
    ],
)
def test_what_a_recipe_refuses(data, changes, words):
    with pytest.raises(FoveateError, match=words):
        parse_recipe(recipe("out", small_stage(data, **changes)))


def test_a_run_refuses_an_ordinary_connector_before_it_trains(tmp_path, data):
    stage = small_stage(data, lengths="all", train={"connector": 1e-3})
    with pytest.raises(FoveateError, match="stage one: lengths is for nested connectors"):
        run_of(tmp_path / "out", "average", stage).train()
