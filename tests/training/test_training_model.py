"""The losses of a learner, and that they cost only what they need."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from foveate.synthetic import Character
from foveate.training.collate import Collator
from foveate.training.cpu_attention import NAME, prefer_plain_when_short
from foveate.training.examples import Example
from foveate.training.losses import SUMS
from foveate.training.recipe import PARTS
from foveate.training.training_model import TrainingModel


def example(width: int, height: int, answer: str) -> Example:
    rng = np.random.default_rng(width)
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    characters = [
        Character(c, float(x), float(y)) for c, x, y in zip("abcd", (3, 20, 40, 60), (5, 9, 17, 30), strict=True)
    ]
    return Example.of_question(image, "What?", answer, characters)


@pytest.fixture
def training_model(model):
    return TrainingModel(copy.deepcopy(model))


@pytest.fixture
def batch(processor):
    # Large before small: the tower packs images by size, the targets must follow it.
    return Collator(processor, cells=True)([example(96, 64, "yes"), example(64, 32, "no way"), example(64, 96, "x")])


def test_the_answer_loss_is_the_models(training_model, batch):
    with torch.no_grad():
        sums = training_model(**batch)
        cells = batch.pop("cells")
        loss = training_model.model(**batch).loss
    assert float(sums["answer_loss"] / sums["answer_tokens"]) == pytest.approx(float(loss), rel=1e-5)
    assert int(sums["answer_tokens"]) == 4 + 7 + 2
    assert int(sums["cell_characters"]) == int((cells > 0).sum()) > 0
    others = ("answer_attention", "question_attention", "page", "colour", "caption", "recalibration")
    assert set(sums) == {name for name in SUMS if not name.startswith(others)}  # not asked for


def test_cell_losses_do_not_depend_on_the_company(training_model, processor):
    """A batch of images of mixed sizes scores what its images score alone, in both heads."""
    examples = [example(96, 64, "a"), example(64, 32, "b"), example(64, 96, "c"), example(64, 32, "d")]
    collate = Collator(processor, answers=False, cells=True)
    together = training_model(**collate(examples), blank_weight=0.3)
    alone = [training_model(**collate([one]), blank_weight=0.3) for one in examples]
    for name in together:
        torch.testing.assert_close(
            together[name].double(), sum(one[name].double() for one in alone), rtol=1e-5, atol=1e-4
        )


def test_the_head_before_the_last_stage_sees_finer_positions(training_model, processor):
    """Trained on one image, both heads learn where each character stands: their targets are in the right order."""
    batch = Collator(processor, answers=False, cells=True)([example(96, 64, "a"), example(64, 32, "b")])
    optimizer = torch.optim.Adam(training_model.parameters(), lr=3e-3)
    for _ in range(60):
        sums = training_model(**batch, blank_weight=0.2)
        optimizer.zero_grad()
        (sums["cell_loss"] + sums["early_cell_loss"]).backward()
        optimizer.step()
    assert sums["cell_right"] == sums["early_cell_right"] == sums["cell_characters"] > 0


def test_without_answers_the_language_model_does_not_run(training_model, batch):
    def fail(*_):
        raise AssertionError("the language model ran")

    training_model.model.model.language_model.register_forward_pre_hook(fail)
    training_model.model.model.multi_modal_projector.register_forward_pre_hook(fail)
    text = ("input_ids", "attention_mask", "labels")
    sums = training_model(**{name: value for name, value in batch.items() if name not in text})
    (sums["cell_loss"] + sums["early_cell_loss"]).backward()
    assert "answer_loss" not in sums
    trained = {training_model.part_of(name) for name, p in training_model.named_parameters() if p.grad is not None}
    assert trained == {"vision_tower", "stages", "heads"}


def test_every_parameter_belongs_to_one_part(training_model):
    parts = {name: training_model.part_of(name) for name, _ in training_model.named_parameters()}
    assert set(parts.values()) == set(PARTS)
    assert parts["model.model.vision_tower.encoder.blocks.0.merger.attn_layer.0.weight"] == "stages"
    assert parts["model.model.vision_tower.patch_embed.proj.weight"] == "vision_tower"
    assert parts["model.model.multi_modal_projector.linear_1.weight"] == "connector"
    assert parts["model.model.language_model.embed_tokens.weight"] == "language_model"


def test_plain_attention_equals_the_fused_one(training_model, batch):
    fused = training_model(**batch)
    prefer_plain_when_short(training_model.model.model.vision_tower)
    assert training_model.model.config.vision_config._attn_implementation == NAME
    plain = training_model(**batch)
    for name in fused:
        torch.testing.assert_close(plain[name], fused[name], rtol=1e-5, atol=1e-5)
