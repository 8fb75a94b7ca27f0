"""LookupViT at several lengths inside a LLaVA: chosen by plan, and trained together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import foveate
from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.llava import FoveateLlavaForConditionalGeneration
from foveate.training.building import new_model
from foveate.training.collate import Collator
from foveate.training.lengths import lengths_of
from foveate.training.recipe import NewModel
from foveate.training.recipe_file import parse_recipe
from foveate.training.training_model import TrainingModel
from tests.models.encoders.small_encoders import fields_of
from tests.models.llava.small_encoder_llava import llava
from tests.models.llava.small_llava import small_batch
from tests.training.small_training import recipe, small_stage
from tests.training.test_architectures import EXAMPLES
from tests.training.test_architectures import TEXT as RECIPE_TEXT

SIDES = [2, 3]


def configured(model: Any, side: int) -> Any:
    """A model with the same weights and one length."""
    config = model.config.__class__.from_dict(model.config.to_dict())
    config.vision_config.compressed_side, config.vision_config.training_sides = side, []
    other = FoveateLlavaForConditionalGeneration(config).eval()
    other.load_state_dict(model.state_dict())
    return other


@pytest.fixture(scope="module")
def nested():
    return llava("lookupvit", training_sides=SIDES)


@pytest.mark.parametrize("side", [2, 3])
def test_a_plan_gives_the_tokens_of_a_model_of_this_length(nested, side):
    model, processor = nested
    batch, other = small_batch(processor), configured(model, side)
    pixels = batch["pixel_values"]
    with torch.no_grad():
        tokens = model.get_image_features(pixels, budget=[side**2] * len(pixels)).pooler_output
        expected = other.get_image_features(pixels).pooler_output
        torch.testing.assert_close(torch.stack(tokens), torch.stack(expected))
        with foveate.compress(model, f"nested:{side**2}") as handle:
            logits = model(**batch).logits
            assert [image.tokens_kept for image in handle.report().images] == [side**2] * 3
        full = model(**batch).logits
    assert logits.shape[1] == full.shape[1] - 2 * (16 - side**2)
    own, _ = llava("lookupvit")  # without training_sides
    with pytest.raises(FoveateError, match="nested needs a nested connector, and this model has mlp"):
        foveate.compress(own, "nested:4")


def test_it_generates_at_a_length(nested):
    model, processor = nested
    batch = small_batch(processor)
    with foveate.compress(model, "nested:9"):
        cached = model.generate(**batch, max_new_tokens=3, do_sample=False)
        assert torch.equal(cached, model.generate(**batch, max_new_tokens=3, do_sample=False, use_cache=False))
    with foveate.compress(model, "nested:16"), torch.no_grad():
        longest = model(**batch).logits
    with torch.no_grad():
        assert torch.equal(longest, model(**batch).logits)


def test_numbers_it_was_not_trained_at_are_refused(nested):
    model, processor = nested
    with (
        foveate.compress(model, "nested:5"),
        pytest.raises(FoveateError, match="lookupvit was not trained to give 5 tokens; possible are 4, 9, 16"),
    ):
        model(**small_batch(processor))


def test_a_connector_may_merge_what_the_encoder_gives():
    """Of 2 x 2, 3 x 3 and 4 x 4 tokens it can halve two."""
    model, processor = llava("lookupvit", "pixel_unshuffle", training_sides=SIDES)
    assert processor.nested_part.grids == {1: Grid(2, 2), 4: Grid(4, 4)}
    batch = small_batch(processor)
    with foveate.compress(model, "nested:1") as handle:
        model(**batch)
        assert [image.tokens_kept for image in handle.report().images] == [1, 1, 1]


def test_a_nested_connector_comes_first():
    _, processor = llava("lookupvit", "tokenflex", training_sides=SIDES)
    assert processor.nested_part is processor.connector


@pytest.mark.parametrize("lengths", [None, "all"])
def test_a_recipe_trains_all_lengths(lengths):
    """ "all" averages the losses of all lengths, each with a pass of the encoder of its own."""
    vision = {"type": "lookupvit", **fields_of("lookupvit", training_sides=SIDES)}
    model, processor = new_model(NewModel(architecture="llava", vision=vision, text=RECIPE_TEXT), seed=0)
    chosen: dict[str, Any] = {} if lengths is None else {"lengths": lengths}
    (stage,) = parse_recipe(recipe(Path("out"), small_stage([{"easy_vqa": True}], **chosen))).stages
    assert lengths_of(stage, processor) == (lengths or "sampled")
    batch = Collator(processor, lengths=True)(EXAMPLES)
    assert batch["lengths"].tolist() == [4, 9, 16]
    training_model = TrainingModel(model).train()
    runs = []
    model.model.vision_tower.register_forward_hook(lambda *call: runs.append(call[2].last_hidden_state.shape[1]))
    with torch.no_grad():
        mean = training_model(**batch)["answer_loss"]
        assert runs == [4, 9, 16]
        each = [training_model(**{**batch, "lengths": length[None]})["answer_loss"] for length in batch["lengths"]]
    torch.testing.assert_close(mean, torch.stack(each).mean())
    assert len({round(float(one), 6) for one in each}) == 3
